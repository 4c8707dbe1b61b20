import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.streams import SlidingWindows, StreamWindows, TokenStreams, split_streams


class Counting(TokenStreams):
    """The text 0, 1, 2, ..."""

    def build(self) -> None:
        self.ids = {"train": torch.arange(90), "validation": torch.arange(50), "test": torch.arange(12)}


@pytest.fixture
def counting() -> Counting:
    datamodule = Counting(batch_size=4, window=5)
    datamodule.setup()
    return datamodule


def test_streams_start_at_i_n_over_b_rounded_half_up() -> None:
    # i * 10 / 4 = 0, 2.5, 5, 7.5: round() would start the second stream at 2.
    assert split_streams(torch.arange(10), 4).tolist() == [[0, 3, 5, 8], [1, 4, 6, 9]]


def test_penn_treebank_sized_text_starts_its_streams_where_the_lua_code_does() -> None:
    streams = split_streams(torch.arange(929_589), 20)
    assert streams.shape == (46_479, 20)
    assert streams[0, 10] == 464_795
    assert len(streams.unique()) == 929_580  # Nine tokens fall between the streams.


@pytest.mark.parametrize("num_tokens", range(7, 40))
def test_streams_never_overlap_nor_run_past_the_end(num_tokens: int) -> None:
    assert len(split_streams(torch.arange(num_tokens), 7).unique()) == num_tokens // 7 * 7


@pytest.mark.parametrize(("num_tokens", "window", "expected"), [(929_589, 35, 1327), (929_589, 20, 2323)])
def test_training_text_of_the_penn_treebank_gives_the_published_number_of_windows(
    num_tokens: int, window: int, expected: int
) -> None:
    assert len(StreamWindows(split_streams(torch.arange(num_tokens), 20), window)) == expected


@pytest.mark.parametrize(("window", "expected", "factor"), [(35, 105, 0.996745), (20, 184, 0.998101)])
def test_validation_divisor_of_the_published_code_follows_from_num_steps(
    window: int, expected: int, factor: float
) -> None:
    windows = StreamWindows(split_streams(torch.arange(73_760), 20), window)
    assert len(windows) == expected
    assert len(windows) / (windows.num_steps / window) == pytest.approx(factor, abs=1e-6)


def test_targets_are_the_inputs_one_row_later() -> None:
    windows = StreamWindows(torch.arange(20).view(10, 2), window=4)
    assert len(windows) == 2
    inputs, targets = windows[1]
    assert inputs.tolist() == [[8, 9], [10, 11], [12, 13], [14, 15]]
    assert targets.tolist() == [[10, 11], [12, 13], [14, 15], [16, 17]]


def test_remainder_window_completes_the_predictions() -> None:
    windows = StreamWindows(torch.arange(10)[:, None], window=4, keep_remainder=True)
    targets = torch.cat([targets for _, targets in windows])  # type: ignore[attr-defined]
    assert targets.flatten().tolist() == list(range(1, 10))
    assert len(windows[2][0]) == 1


def test_remainder_adds_no_empty_window() -> None:
    assert len(StreamWindows(torch.arange(9)[:, None], window=4, keep_remainder=True)) == 2


@pytest.mark.parametrize("index", [2, -1])
def test_window_outside_the_text_raises(index: int) -> None:
    with pytest.raises(IndexError, match="of 2"):
        StreamWindows(torch.arange(10)[:, None], window=4)[index]


def test_text_without_a_single_window_raises_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"streams of 4 tokens are too short for a window of 4.*batch_size"):
        StreamWindows(torch.arange(4)[:, None], window=4)


def test_windows_come_in_the_order_of_the_text_in_every_epoch(counting: Counting) -> None:
    loader = counting.train_dataloader()
    for _ in range(2):
        inputs = torch.cat([inputs for inputs, _ in loader])
        assert torch.equal(inputs, split_streams(torch.arange(90), 4)[:20])


def test_test_text_is_one_stream_with_every_token_but_the_first_predicted(counting: Counting) -> None:
    [test_loader] = counting.test_dataloader()
    for loader in (test_loader, counting.predict_dataloader()[0]):
        assert torch.cat([targets for _, targets in loader]).tolist() == [[i] for i in range(1, 12)]


@pytest.mark.parametrize(
    "loader", [Counting.train_dataloader, lambda counting: counting.val_dataloader()[0]], ids=["train", "validation"]
)
def test_blocks_of_all_processes_side_by_side_are_the_batch_of_one_process(
    counting: Counting, as_rank: Callable, loader: Callable
) -> None:
    whole = [inputs for inputs, _ in loader(counting)]
    blocks = []
    for rank in range(2):
        as_rank(counting, rank, 2)
        blocks.append([inputs for inputs, _ in loader(counting)])
    assert len(whole) > 1
    assert all(torch.equal(torch.cat(parts, dim=1), batch) for *parts, batch in zip(*blocks, whole, strict=True))


def test_all_processes_see_the_whole_test_text(counting: Counting, as_rank: Callable) -> None:
    as_rank(counting, 1, 2)
    [loader] = counting.test_dataloader()
    assert sum(targets.numel() for _, targets in loader) == 11


def test_twenty_streams_are_shared_by_the_numbers_of_processes_that_the_benchmarks_name(as_rank: Callable) -> None:
    readme = (Path(__file__).parents[2] / "benchmarks/README.md").read_text(encoding="utf-8")
    assert "so 1, 2, 4, 5, 10 or 20 processes can take part" in " ".join(readme.split())
    datamodule = Counting(batch_size=20, window=1)
    datamodule.setup()
    for processes in range(1, 22):
        as_rank(datamodule, 0, processes)
        fits = processes in (1, 2, 4, 5, 10, 20)
        with contextlib.nullcontext() if fits else pytest.raises(ValueError, match="cannot be shared evenly"):
            inputs, _ = next(iter(datamodule.train_dataloader()))
            assert inputs.size(1) == 20 // processes


def test_a_corpus_is_built_once_for_all_stages() -> None:
    built = []

    class Builds(Counting):
        def build(self) -> None:
            built.append(self)
            super().build()

    datamodule = Builds(batch_size=4, window=5)
    for stage in ("fit", "validate", "test", "predict"):
        datamodule.setup(stage)
    assert len(built) == 1


def test_batch_that_cannot_be_shared_evenly_raises(counting: Counting, as_rank: Callable) -> None:
    as_rank(counting, 0, 3)
    with pytest.raises(ValueError, match=r"batch_size=4 .* 3 processes.*divisible by 3"):
        counting.train_dataloader()


def test_sliding_windows_are_the_words_before_every_word_that_has_enough_of_them() -> None:
    items = list(SlidingWindows(torch.arange(9), window=3, columns=4))
    assert [inputs.T.tolist() for inputs, _ in items] == [
        [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]],
        [[4, 5, 6], [5, 6, 7]],
    ]
    assert [targets.tolist() for _, targets in items] == [[[3, 4, 5, 6]], [[7, 8]]]


def test_sliding_windows_are_a_second_loader_of_the_test_where_they_are_wanted() -> None:
    datamodule = Counting(batch_size=4, window=5, sliding_test=True)
    datamodule.setup()
    plain, sliding = datamodule.test_dataloader()
    assert torch.cat([targets for _, targets in plain]).flatten().tolist() == list(range(1, 12))
    assert torch.cat([targets for _, targets in sliding], dim=1).flatten().tolist() == list(range(5, 12))


def test_text_too_short_to_slide_over_raises_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"text of 5 tokens is too short for a window of 5.*smaller window"):
        SlidingWindows(torch.arange(5), window=5)
