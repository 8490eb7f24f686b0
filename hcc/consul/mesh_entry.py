"""The mesh entry: what every sidecar of the mesh is to do alike.

Of it only `HTTP.Incoming.RequestNormalization` is read. Source: hashicorp/consul
agent/structs/config_entry_mesh.go (1.20.1); reference/consul.md section 6.
"""

from __future__ import annotations

from hcc.consul.fields import Fields, fields_list
from hcc.mesh.request import CONSULS_DEFAULT, EscapedSlashes, Normalization, Underscores

_SLASHES = {
    "": EscapedSlashes.KEEP,
    # Envoy's own default is to keep them.
    "IMPLEMENTATION_SPECIFIC_DEFAULT": EscapedSlashes.KEEP,
    **{action.value: action for action in EscapedSlashes},
}
_UNDERSCORES = {"": Underscores.ALLOW, **{action.value: action for action in Underscores}}


def normalization(data: object) -> Normalization:
    """How requests are normalised, from the list of mesh entries; what we do not know is the strictest.

    Raises:
        ConsulAnswerError: a field is of another type than Consul's.
    """
    entries = fields_list(data, "")
    return _normalization(entries[0]) if entries else CONSULS_DEFAULT


def _normalization(entry: Fields) -> Normalization:
    said = entry.child("HTTP").child("Incoming").child("RequestNormalization")
    return Normalization(
        path=not said.flag("InsecureDisablePathNormalization"),
        merge_slashes=said.flag("MergeSlashes"),
        escaped_slashes=_SLASHES.get(said.text("PathWithEscapedSlashesAction"), EscapedSlashes.REJECT),
        underscores=_UNDERSCORES.get(said.text("HeadersWithUnderscoresAction"), Underscores.REJECT),
    )
