import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from lightning import LightningDataModule


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    cache = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(cache / "downloads"))
        patch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", str(cache / "extracted"))
        yield


@pytest.fixture(scope="session")
def real_corpus() -> Callable[[str], Path]:
    """The folder that holds a real corpus, or a skipped test."""

    def find(name: str) -> Path:
        data_dir = Path(os.environ.get("DATA_DIR", "data"))
        if not (data_dir / name).is_dir():
            pytest.skip(f"no folder {name} in {data_dir}: set DATA_DIR to the folder that holds it")
        return data_dir

    return find


@pytest.fixture
def as_rank() -> Callable[..., None]:
    """Lets a data module believe that it runs in one of several processes, and accumulates gradients over parts."""

    def attach(datamodule: LightningDataModule, rank: int, world_size: int, parts: int = 1) -> None:
        datamodule.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=world_size, accumulate_grad_batches=parts, training=False
        )

    return attach
