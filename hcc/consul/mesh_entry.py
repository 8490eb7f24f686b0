"""The mesh entry: what every sidecar of the mesh is to do alike.

Of it `HTTP.Incoming.RequestNormalization`, `HTTP.SanitizeXForwardedClientCert` and `TLS` are read. Source:
hashicorp/consul agent/structs/config_entry_mesh.go (1.20.1); reference/consul.md section 6.
"""

from __future__ import annotations

from hcc.consul.answers import MeshEntry
from hcc.consul.fields import Fields, fields_list
from hcc.mesh.request import EscapedSlashes, Normalization, Underscores
from hcc.mesh.tls import MeshTls, TlsLimits, TlsVersion

_SLASHES = {
    "": EscapedSlashes.KEEP,
    # Envoy's own default is to keep them.
    "IMPLEMENTATION_SPECIFIC_DEFAULT": EscapedSlashes.KEEP,
    **{action.value: action for action in EscapedSlashes},
}
_VERSIONS = {"": None, "TLS_AUTO": None, **{version.value: version for version in TlsVersion}}
_KIND = "mesh"
_UNDERSCORES = {"": Underscores.ALLOW, **{action.value: action for action in Underscores}}


def mesh_entry(data: object) -> MeshEntry:
    """What the list of mesh entries says; what we do not know is the strictest.

    Raises:
        ConsulAnswerError: an entry of another kind, a field of another type than Consul's.
    """
    entries = fields_list(data, "")
    if not entries:
        return MeshEntry()
    first = entries[0]
    if first.text("Kind") != _KIND:
        raise first.error("Kind", _KIND)
    hides_callers = first.child("HTTP").flag("SanitizeXForwardedClientCert")
    return MeshEntry(_normalization(first), _tls(first.child("TLS")), hides_callers)


def _normalization(entry: Fields) -> Normalization:
    said = entry.child("HTTP").child("Incoming").child("RequestNormalization")
    return Normalization(
        path=not said.flag("InsecureDisablePathNormalization"),
        merge_slashes=said.flag("MergeSlashes"),
        escaped_slashes=_SLASHES.get(said.text("PathWithEscapedSlashesAction"), EscapedSlashes.REJECT),
        underscores=_UNDERSCORES.get(said.text("HeadersWithUnderscoresAction"), Underscores.REJECT),
    )


def _tls(said: Fields) -> MeshTls:
    return MeshTls(_limits(said.child("Incoming")), _limits(said.child("Outgoing")))


def _limits(said: Fields) -> TlsLimits:
    return TlsLimits(
        _VERSIONS.get(said.text("TLSMinVersion"), TlsVersion.TLS_1_3),
        _VERSIONS.get(said.text("TLSMaxVersion")),
        said.texts("CipherSuites"),
    )
