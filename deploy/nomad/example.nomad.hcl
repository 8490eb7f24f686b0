# A service with hcc instead of Envoy: `sidecar_task` replaces Nomad's own proxy task. Nomad registers service and
# sidecar; hcc finds the sidecar by the ID that Nomad gives the service.

job "count" {
  datacenters = ["dc1"]

  group "api" {
    network {
      mode = "bridge"
    }

    service {
      name = "count-api"
      port = "9001"

      connect {
        sidecar_service {}

        sidecar_task {
          name   = "hcc"
          driver = "docker"
          user   = "10001"

          config {
            image = "haproxy-connect:0.1.0" # deploy/container/Containerfile
            args  = ["run"]

            # State, keys among it, goes to the image's volume /run/hcc, which hcc's user owns; a tmpfs that Nomad mounts
            # is root's.
            readonly_rootfs = true
            cap_drop        = ["all"]
            security_opt    = ["no-new-privileges"]
          }

          env {
            HCC_SIDECAR_FOR = "_nomad-task-${NOMAD_ALLOC_ID}-group-${NOMAD_GROUP_NAME}-count-api-9001"
            HCC_HTTP_ADDR   = "${attr.unique.network.ip-address}:8500"
            HCC_STATS_ADDR  = "0.0.0.0:20200"

            # With ACLs: the token with a service identity that Nomad's Consul integration makes for the sidecar, readable
            # for `user`.
            # HCC_TOKEN_FILE = "${NOMAD_SECRETS_DIR}/si_token"
          }

          # Longer than --drain-delay and --drain-timeout together.
          kill_timeout = "30s"

          resources {
            cpu    = 100
            # docs/sizing.md; a reload runs HAProxy twice for a while.
            memory = 256
          }
        }
      }
    }

    task "api" {
      driver = "docker"

      config {
        image = "docker.io/hashicorpdev/counter-api:v3"
      }
    }
  }
}
