"""Which training protocol a run followed, and where it did not: what decides which runs are shown together.

A run's manifest names its protocol, and its settings are held against those that the protocol has for the run's estimator and
data set. Two runs of one protocol that change the same settings to the same values differ in estimator, seed and data set
alone, also where the protocol itself has other settings for other estimators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from ntkml.protocols.tables import read_tables
from ntkml.protocols.train import TrainProtocol, load_train, settings_for, train_names

_DEFAULTS = {field.name: None if field.default is MISSING else field.default for field in fields(TrainProtocol)}


@dataclass(frozen=True)
class RunSettings:
    """A protocol, its variant and the (setting, value) that a run changed, in the order of the protocol."""

    protocol: str
    variant: str
    changes: tuple[tuple[str, Any], ...]

    def without(self, name: str) -> RunSettings:
        """The settings as if ``name`` had not been changed."""
        return RunSettings(self.protocol, self.variant, tuple(pair for pair in self.changes if pair[0] != name))


def settings_of(manifest: Mapping[str, Any]) -> RunSettings | None:
    """What the run of a manifest followed; None where it names no protocol, or none that is known here."""
    named = manifest.get("protocol") or {}
    settings = manifest["settings"]
    if named.get("name") not in train_names():
        return None
    try:
        asked = load_train(
            named["name"], settings["hparam"], named.get("variant", ""), settings["estimator"], settings["dataset"]
        )
    except ValueError:  # a protocol that no longer learns this
        return None
    changes = []
    for name in settings_for(settings["estimator"]):
        ours = settings.get(name, _DEFAULTS[name])
        if name != "dataset" and ours != getattr(asked, name):
            changes.append((name, ours))
    if "precision" in settings:  # of the weights' steps, where it is not float32; no protocol has one
        changes.append(("precision", settings["precision"]))
    return RunSettings(asked.name, asked.variant, tuple(changes))


def versions_of(name: str) -> list[str]:
    """The training protocol ``name`` and those that reduce it."""
    return [other for other in train_names() if name in (other, read_tables(other).get("reduces"))]
