"""A run: one row, trained with one seed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class Run:
    """One training run. Its name is EXPERIMENT/GROUP/ROW/seedK; result file and folder have it, too."""

    experiment: str
    group: str
    row: str
    seed: int

    @classmethod
    def parse(cls, text: str | Path) -> Run:
        """Make a run of its name, or of the path of its result file or folder.

        Raises:
            ValueError: the text does not end in EXPERIMENT/GROUP/ROW/seedK.
        """
        name = re.search(r"([^/]+)/([^/]+)/([^/]+)/seed(\d+)(\.json)?$", Path(text).as_posix())
        if not name:
            raise ValueError(f"result must be .../EXPERIMENT/GROUP/ROW/seedK.json, got {text}")
        return cls(name[1], name[2], name[3], int(name[4]))

    @classmethod
    def of_row(cls, row: str, seed: int) -> Run:
        """The run of a row EXPERIMENT/GROUP/ROW with a seed."""
        experiment, group, name = row.split("/")
        return cls(experiment, group, name, seed)

    def __str__(self) -> str:
        return f"{self.row_name}/seed{self.seed}"

    @property
    def row_name(self) -> str:
        """The name of its row, EXPERIMENT/GROUP/ROW."""
        return f"{self.experiment}/{self.group}/{self.row}"

    def result(self, results: Path) -> Path:
        """Its result file below a folder of results."""
        return results / f"{self}.json"

    def folder(self, runs: Path) -> Path:
        """The folder of its checkpoints and logs, below one of runs."""
        return runs / str(self)

    def ablation(self, results: Path) -> Path:
        """The file of its test-time choices, beside its result."""
        return self.result(results).with_name(f"ablation_seed{self.seed}.json")
