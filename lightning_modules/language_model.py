"""Word-level language modelling with truncated back-propagation: the Penn Treebank experiment."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from datamodules.checks import LARGEST_SEED, check_count, check_number, check_text
from datamodules.reader import EOS, UNKNOWN
from datamodules.streams import StreamWindows
from lightning_modules.experiment import MOST_SAMPLES, TEST, TRAINING, Experiment, NetworkMasks, check_probabilities
from lightning_modules.losses import softmax_nll
from lightning_modules.optim import DecoupledSGD
from variational_rnn import (
    RNNMasks,
    VariationalDropout,
    VariationalEmbedding,
    VariationalGRU,
    VariationalLSTM,
    log_mean_exp,
    mutual_information,
)
from variational_rnn.masks import check_choice

State = Any  # (h, c), each [L, B, H], of an LSTM; h of a GRU

# Rows of logits held at once when many samples are evaluated: 512 x 10,000 words x 4 bytes = 20 MB.
LOGIT_ROWS = 512
MOST_WORDS = 100_000  # of a generated sequence


class Surprisals(NamedTuple):
    """What a language model says about the N words of a text that follow its first one.

    Attributes:
        words: as the model reads them.
        known: whether the vocabulary has them; the others are read, and predicted, as <unk>.
        approximation: -ln p(word) in nats by the dropout approximation, [N].
        mc: -ln of the mean probability over K sampled networks, [N]; None without samples.
        information: mutual information of word and weights in nats, before the word is seen, [N]: how far the sampled
            networks disagree about what comes next; None without samples.
    """

    words: list[str]
    known: list[bool]
    approximation: Tensor
    mc: Tensor | None
    information: Tensor | None

    @property
    def perplexity(self) -> float:
        """Of the text, by the dropout approximation."""
        return float(self.approximation.mean().exp())

    @property
    def perplexity_mc(self) -> float | None:
        """Of the text, by MC."""
        return None if self.mc is None else float(self.mc.mean().exp())


class LanguageModel(Experiment):
    """Embedding, recurrent layers, softmax over the vocabulary, trained on windows of parallel streams.

    The network is Zaremba et al.'s (2014), the dropout that of equations 4 to 9 of the paper; protocol sections 1.2 to
    1.6, and 1.11 for what others built on it. A batch is (inputs, targets), each [T, B] word ids, of a data module such
    as `PlainText` or of any DataLoader. The state is carried from window to window, the gradient is not. The loss is
    summed over time and averaged over the B streams, in nats.

    Logged: `train_ppl` (mean over the epoch, dropout on), `valid_ppl` (exact), `valid_ppl_lua` (as the original code
    prints it: the sum of floor(R/T) windows divided by the un-floored quotient; of `StreamWindows` only),
    `train_eval_ppl` (dropout off, if the data serve training windows for it), `test_ppl` (dropout approximation),
    `test_ppl_mc` (the probabilities of `mc_samples` sampled networks, averaged), `test_ppl_mc_1`, `_2`, `_5`, `_10`,
    ... (of the first of them only), and `test_ppl_sliding` (dropout approximation, each word from the window of words
    before it alone, if the data serve such windows).

    Args:
        vocab_size: number of word types V.
        hidden_size: size of the embedding and of every layer, H.
        num_layers: recurrent layers.
        cell: "lstm" or "gru".
        word_dropout: probability to drop a word (type) from the embedding.
        input_dropout: probability to drop a unit of each recurrent layer's input.
        recurrent_dropout: probability to drop a unit of h_{t-1}.
        output_dropout: probability to drop a unit of the softmax layer's input.
        memory_dropout: probability to remove an LSTM memory cell (Moon et al.).
        memory_scale: "read" or "loop": where the cells that are kept are scaled, as in `VariationalLSTM`.
        gate_masks: "tied" or "untied".
        time_masks: "constant" for variational masks, "fresh" for naive ones.
        word_masks: "type" as in the paper, "token" as in the code behind its Table 1.
        share_masks: whether all that reads a layer's h has one mask of it: its own recurrence, the next layer and, of
            the last layer, the softmax layer (Inan et al., 2016).
        tie_weights: whether the softmax layer's matrix is the embedding's.
        softmax_bias: whether the softmax layer has a bias.
        projection_penalty: if given, the softmax layer's input goes through one more matrix P [H, H] and a bias, and
            the loss has projection_penalty / 2 * ||P||^2 more (Press & Wolf, 2016). None for no such matrix.
        augmented_loss: weight gamma of Inan et al.'s (2016) loss beside the cross-entropy, as in `softmax_nll`.
        learn_expected: whether that loss has a gradient through the words it expects, too. Without it and with tied
            weights, training can diverge: vectors grow towards what is expected of them, which grows with them.
        init_scale: every parameter starts uniform in [-init_scale, init_scale].
        learning_rate: of plain SGD.
        reference_batch_size: batch size that learning_rate is for: with k times as many streams it is multiplied by k.
            None, the default, leaves it alone.
        learning_rate_decay: what the learning rate is divided by in each epoch after the constant ones.
        constant_epochs: Zaremba's max_epoch: epochs 1 to constant_epochs + 1 use the full learning rate.
        weight_decay: fraction that all parameters shrink by in each step, after the update.
        carry_state: whether the state goes on from window to window; if not, each window starts from zeros.
        epoch_start: "zeros", or "validation": every epoch but the first starts from the final state of the validation
            streams, as the original code did by accident (protocol 1.4).
        mc_samples: number K of sampled networks in the test; 0 for none.
        mc_masks: "stream" keeps a sample for the whole test stream, as the original code did; "window" draws anew for
            each window, as the theory has it; "both" evaluates both, the second as `test_ppl_mc_window`.
        mc_word_dropout: whether words are dropped in the sampled networks; by default not with "stream", as in the
            original code, and with "window".
        backend: of the recurrent layers.

    Raises:
        ValueError: a probability is not in [0, 1), a number out of range, memory_dropout with a GRU, or an unknown or
            impossible choice.
    """

    monitor = "valid_ppl"
    rates_texts = False
    sampled_dropout = ("input_dropout", "recurrent_dropout", "output_dropout", "memory_dropout")
    training_means = ("train_nll",)
    training_metrics = ("train_ppl",)

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_layers: int = 2,
        cell: Literal["lstm", "gru"] = "lstm",
        word_dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        output_dropout: float = 0.0,
        memory_dropout: float = 0.0,
        memory_scale: Literal["read", "loop"] = "read",
        gate_masks: Literal["tied", "untied"] = "tied",
        time_masks: Literal["constant", "fresh"] = "constant",
        word_masks: Literal["type", "token"] = "type",
        share_masks: bool = False,
        tie_weights: bool = False,
        softmax_bias: bool = True,
        projection_penalty: float | None = None,
        augmented_loss: float = 0.0,
        learn_expected: bool = False,
        init_scale: float = 0.1,
        learning_rate: float = 1.0,
        reference_batch_size: int | None = None,
        learning_rate_decay: float = 1.0,
        constant_epochs: int = 0,
        weight_decay: float = 0.0,
        carry_state: bool = True,
        epoch_start: Literal["zeros", "validation"] = "zeros",
        mc_samples: int = 0,
        mc_masks: Literal["stream", "window", "both"] = "stream",
        mc_word_dropout: bool | None = None,
        backend: Literal["auto", "reference"] = "auto",
    ) -> None:
        super().__init__()
        check_choice("cell", cell, ("lstm", "gru"))
        check_choice("epoch_start", epoch_start, ("zeros", "validation"))
        check_choice("mc_masks", mc_masks, ("stream", "window", "both"))
        # NumPy's numbers become Python's, which a checkpoint can hold.
        vocab_size, hidden_size, num_layers = check_count(
            1, vocab_size=vocab_size, hidden_size=hidden_size, num_layers=num_layers
        )
        constant_epochs, mc_samples = check_count(0, constant_epochs=constant_epochs, mc_samples=mc_samples)
        if reference_batch_size is not None:
            [reference_batch_size] = check_count(1, reference_batch_size=reference_batch_size)
        word_dropout, input_dropout, recurrent_dropout, output_dropout, memory_dropout = check_probabilities(
            word_dropout=word_dropout,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            output_dropout=output_dropout,
            memory_dropout=memory_dropout,
        )
        init_scale, learning_rate, augmented_loss = check_number(
            0, init_scale=init_scale, learning_rate=learning_rate, augmented_loss=augmented_loss
        )
        if projection_penalty is not None:
            [projection_penalty] = check_number(0, projection_penalty=projection_penalty)
        [learning_rate_decay] = check_number(above=0, learning_rate_decay=learning_rate_decay)
        [weight_decay] = check_number(0, below=1, weight_decay=weight_decay)
        if mc_word_dropout and word_masks == "token" and mc_masks != "window":
            raise ValueError("word_masks='token' draws for every position: use mc_masks='window' with mc_word_dropout")
        if share_masks and not input_dropout == recurrent_dropout == output_dropout:
            raise ValueError(
                "share_masks has one mask for inputs, recurrent connections and outputs, whose probabilities must be "
                f"equal: got input_dropout={input_dropout}, recurrent_dropout={recurrent_dropout}, "
                f"output_dropout={output_dropout}"
            )
        if share_masks and (gate_masks, time_masks) != ("tied", "constant"):
            raise ValueError(
                "share_masks has one mask for all gates and time steps: use gate_masks='tied' and "
                f"time_masks='constant', got {gate_masks!r} and {time_masks!r}"
            )
        # What is chosen at test time must not come back from a checkpoint over the command line's value.
        self.save_hyperparameters(ignore=["mc_samples", "mc_masks", "mc_word_dropout", "backend"])
        self.share_masks = share_masks
        self.projection_penalty = projection_penalty
        self.augmented_loss = augmented_loss
        self.learn_expected = learn_expected
        self.learning_rate = learning_rate
        self.reference_batch_size = reference_batch_size
        self.learning_rate_decay = learning_rate_decay
        self.constant_epochs = constant_epochs
        self.weight_decay = weight_decay
        self.carry_state = carry_state
        self.epoch_start = epoch_start
        self.mc_samples = mc_samples
        self.mc_masks = mc_masks
        self.mc_word_dropout = mc_word_dropout

        self.embedding = VariationalEmbedding(vocab_size, hidden_size, word_dropout=word_dropout, word_masks=word_masks)
        dropout: dict[str, Any] = {
            "input_dropout": input_dropout,
            "recurrent_dropout": recurrent_dropout,
            "gate_masks": gate_masks,
            "time_masks": time_masks,
            "backend": backend,
        }
        sizes = (hidden_size, hidden_size, num_layers)
        self.rnn: VariationalLSTM | VariationalGRU
        if cell == "lstm":
            self.rnn = VariationalLSTM(*sizes, memory_dropout=memory_dropout, memory_scale=memory_scale, **dropout)
        elif memory_dropout:
            raise ValueError(f"memory_dropout={memory_dropout} removes memory cells of an LSTM; a {cell} has none")
        else:
            self.rnn = VariationalGRU(*sizes, **dropout)
        self.output_dropout = VariationalDropout(output_dropout, time_masks)
        self.projection = None if projection_penalty is None else nn.Linear(hidden_size, hidden_size)
        self.softmax = nn.Linear(hidden_size, vocab_size, bias=softmax_bias)
        if tie_weights:
            self.softmax.weight = self.embedding.weight
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init_scale, init_scale)

        # Means over words. torchmetrics keeps float32 by default, where many losses are summed here, and leaves nan
        # out, which would hide that a run has diverged; with "disable" it ignores weights: losses come word by word.
        self.train_nll, self.train_eval_nll, self.valid_nll, self.test_nll, self.test_nll_sliding = (
            MeanMetric(nan_strategy="disable").set_dtype(torch.float64) for _ in range(5)
        )
        self.test_nll_mc: Any = nn.ModuleDict(
            {
                name: nn.ModuleList(MeanMetric(nan_strategy="disable").set_dtype(torch.float64) for _ in self.mc_counts)
                for name in self.mc_passes
            }
        )
        self._train_state: State = None
        self._eval_state: State = None
        self._valid_state: State = None
        self._mc: dict[str, tuple[State, NetworkMasks]] = {}

    @property
    def mc_counts(self) -> list[int]:
        """The numbers of sampled networks whose perplexity is measured: 1, 2, 5, 10, 20, ... and mc_samples."""
        steps = (digit * 10**power for power in range(len(str(self.mc_samples))) for digit in (1, 2, 5))
        return [*(count for count in steps if count < self.mc_samples), self.mc_samples] if self.mc_samples else []

    @property
    def mc_passes(self) -> dict[str, str]:
        """The MC evaluations of the test: name of the metric, and how long masks are kept."""
        if self.mc_masks == "both":
            return {"test_ppl_mc": "stream", "test_ppl_mc_window": "window"}
        return {"test_ppl_mc": self.mc_masks}

    def sample_masks(
        self, batch_size: int, steps: int | None = None, generator: torch.Generator | None = None
    ) -> NetworkMasks:
        """Draw one network for each of `batch_size` sequences.

        Args:
            batch_size: B.
            steps: T, where masks are fresh or by token.
            generator: source of randomness; torch's global one by default.
        """
        weight = self.softmax.weight
        words = self.embedding.sample_masks(batch_size, steps, generator=generator)
        rnn = self.rnn.sample_masks(batch_size, steps, generator=generator)
        if self.share_masks and (last := rnn.layers[-1].recurrent) is not None:
            others = (layer._replace(input=below.recurrent) for below, layer in pairwise(rnn.layers))
            return NetworkMasks(words, RNNMasks((rnn.layers[0], *others)), last[:, 0])
        output = self.output_dropout.sample_masks(
            *(batch_size, self.rnn.hidden_size, steps), device=weight.device, dtype=weight.dtype, generator=generator
        )
        return NetworkMasks(words, rnn, output)

    def forward(self, words: Tensor, state: State = None, masks: NetworkMasks | None = None) -> tuple[Tensor, State]:
        """Predict each next word.

        Args:
            words: [T, B] ids.
            state: of the previous window; zeros by default.
            masks: of `sample_masks`; sampled in training, none in eval, by default.

        Returns:
            Logits [T, B, V] and the state after the last word.
        """
        hidden, state = self._hidden(words, state, masks)
        return self.softmax(hidden), state

    def _hidden(self, words: Tensor, state: State, masks: NetworkMasks | None) -> tuple[Tensor, State]:
        if masks is None and self.share_masks and self.rnn.dropout_is_live:
            masks = self.sample_masks(words.size(1), len(words))
        word_mask, rnn_masks, output_mask = masks or (None, None, None)
        hidden, state = self.rnn(self.embedding(words, word_mask), state, rnn_masks)
        hidden = self.output_dropout(hidden, output_mask)
        return hidden if self.projection is None else self.projection(hidden), state

    # --- training -----------------------------------------------------------------------------------------------

    def validation_metrics(self) -> list[str]:
        """Perplexities of the validation text, and of training windows if the data serve some for evaluation."""
        of_training = getattr(self.trainer.datamodule, "train_eval_windows", 0)  # type: ignore[attr-defined]
        return ["valid_ppl", "valid_ppl_lua", *(["train_eval_ppl"] if of_training else [])]

    def setup(self, stage: str) -> None:
        """Check the trainer's options, and take over how the data read texts.

        Raises:
            ValueError: as in `Experiment`, or gradients are to be accumulated.
        """
        super().setup(stage)
        if self.is_fitting and self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "trainer.accumulate_grad_batches must be 1 for a language model, got "
                f"{self.trainer.accumulate_grad_batches}: the next batch is the next window, which starts from the "
                "state of the one before. Choose a smaller window or batch_size of the data, or more processes."
            )

    def on_train_epoch_start(self) -> None:
        """Start the streams from zeros, or where the validation streams ended."""
        super().on_train_epoch_start()
        self._train_state = None
        if self.epoch_start == "validation" and self._valid_state is not None:
            # Cloned, since validation is in inference mode, whose tensors have no gradients to come.
            self._train_state = _each(lambda part: part.to(self.device, copy=True), self._valid_state)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        """Loss of one window, as in `loss`."""
        loss, nll, state = self.loss(*batch, self._train_state, self._masks_of_window(batch[0], batch_index))
        self._train_state = _each(Tensor.detach, state) if self.carry_state else None
        self.train_nll.update(nll)
        return loss

    def _masks_of_window(self, inputs: Tensor, window: int) -> NetworkMasks:
        """Masks of a training window for the streams of this process, selected from those drawn for all streams."""
        steps, streams = inputs.shape
        generator = self.generator(TRAINING, self.current_epoch, window)
        masks = self.sample_masks(streams * self.trainer.world_size, steps, generator)
        if self.trainer.world_size == 1:
            return masks
        first = self.global_rank * streams
        return masks.select(list(range(first, first + streams)), by_token=self.embedding.word_masks == "token")

    def loss(
        self, inputs: Tensor, targets: Tensor, state: State = None, masks: NetworkMasks | None = None
    ) -> tuple[Tensor, Tensor, State]:
        """Cross-entropy of a window in nats, summed over time and averaged over streams, and what is added to it.

        Args:
            inputs: word ids, [T, B].
            targets: the next words, [T, B].
            state: of the previous window; zeros by default.
            masks: of `sample_masks`; sampled in training, none in eval, by default.

        Returns:
            The loss; the surprisal of each word, [T*B], without gradient; and the state after the last word.
        """
        hidden, state = self._hidden(inputs, state, masks)
        loss, nll = softmax_nll(
            *(hidden.flatten(0, 1), self.softmax.weight, self.softmax.bias, targets.flatten()),
            scale=1 / targets.size(1),
            embedding=self.embedding.weight,
            gamma=self.augmented_loss,
            learn_expected=self.learn_expected,
        )
        if self.projection is not None and self.projection_penalty:
            loss = loss + self.projection_penalty / 2 * self.projection.weight.square().sum()
        return loss, nll, state

    def on_train_epoch_end(self) -> None:
        """Log the epoch's training perplexity, with dropout on."""
        self.log("train_ppl", self.train_nll.compute().exp())
        super().on_train_epoch_end()

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LRScheduler]]:
        """Plain SGD with decoupled decay; the learning rate is divided after each epoch beyond constant_epochs + 1."""
        optimizer = DecoupledSGD(self.parameters(), lr=self.scaled_learning_rate(), decay=self.weight_decay)

        def rate(epochs_done: int) -> float:
            return self.learning_rate_decay ** -max(0, epochs_done - self.constant_epochs)

        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, rate)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the states of the streams of all processes, and the one that the next epoch starts from."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["train_state"] = self._of_all_processes(self._train_state)
        if self.epoch_start == "validation":
            checkpoint["valid_state"] = self._of_all_processes(self._valid_state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint fits, and take over where it stood.

        Raises:
            ValueError: it does not fit, as in `Experiment`, or the weights that are tied here are not in it.
        """
        super().on_load_checkpoint(checkpoint)
        weights = checkpoint["state_dict"]
        tied = self.softmax.weight is self.embedding.weight
        if tied and not torch.equal(weights["softmax.weight"], weights["embedding.weight"]):
            raise ValueError(
                "the checkpoint is of a model whose softmax layer has a matrix of its own: use tie_weights=False"
            )
        if not self.is_fitting:
            return
        self._train_state = self._of_this_process(checkpoint.get("train_state"))
        self._valid_state = self._of_this_process(checkpoint.get("valid_state"))

    def _of_all_processes(self, state: State) -> State:
        """The state of the streams of all processes, from that of this process's streams."""
        if self.trainer.world_size == 1:
            return state
        return _each(lambda own: torch.cat(list(self.all_gather(own)), dim=1), state)

    def _of_this_process(self, state: State) -> State:
        """The state of this process's streams, from that of all."""
        rank, world_size = self.global_rank, self.trainer.world_size
        return _each(lambda whole: whole.to(self.device).chunk(world_size, dim=1)[rank].contiguous(), state)

    # --- evaluation ---------------------------------------------------------------------------------------------

    def _surprisal(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Surprisal -ln p(target) in nats of every target of a window, the state carried from the one before.

        There are as many targets as inputs, [T, B], or fewer, which are then those of the last inputs.
        It is computed in the parameters' precision, whatever they are trained in.
        """
        inputs, targets = batch
        with torch.autocast(self.device.type, enabled=False):
            hidden, state = self._hidden(inputs, self._eval_state, None)
            last = hidden[-len(targets) :].flatten(0, 1)
            _, nll = softmax_nll(last, self.softmax.weight, self.softmax.bias, targets.flatten())
        self._eval_state = state if self.carry_state else None
        return nll.view_as(targets)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int, dataloader_idx: int = 0) -> None:
        """Evaluate one window, dropout off: loader 0 serves validation windows, loader 1 training windows."""
        if batch_index == 0:
            self._eval_state = None  # the streams start from zeros
        (self.valid_nll if dataloader_idx == 0 else self.train_eval_nll).update(self._surprisal(batch))
        is_before_training = self._trainer is not None and self._trainer.sanity_checking
        if dataloader_idx == 0 and not is_before_training:
            self._valid_state = self._eval_state

    def on_validation_epoch_end(self) -> None:
        """Log the exact validation perplexity, and the one that the original code would print (protocol 1.6)."""
        nll = self.valid_nll.compute()
        self.valid_nll.reset()
        self.log("valid_ppl", nll.exp(), prog_bar=True)
        loaders = self.trainer.val_dataloaders
        windows = getattr(loaders[0] if isinstance(loaders, Sequence) else loaders, "dataset", None)
        if isinstance(windows, StreamWindows):
            predicted = len(windows) * windows.window
            self.log("valid_ppl_lua", (nll * predicted / windows.num_steps).exp())
        if self.train_eval_nll.update_called:
            self.log("train_eval_ppl", self.train_eval_nll.compute().exp())
            self.train_eval_nll.reset()

    def on_test_epoch_start(self) -> None:
        """Start the test stream from zeros, for the networks that will be sampled, too."""
        self._eval_state = None
        self._mc = {}

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int, dataloader_idx: int = 0) -> None:
        """Evaluate one window of the test stream by the dropout approximation, and by MC if mc_samples > 0.

        Loader 1 serves windows side by side of which only the word that follows is predicted: [T, B] and [1, B].
        """
        if dataloader_idx == 1:
            self._eval_state = None
            self.test_nll_sliding.update(self._surprisal(batch))
            return
        self.test_nll.update(self._surprisal(batch))
        for name in self.mc_passes if self.mc_samples else ():
            log_probs = self._mc_log_probs(*batch, name, (TEST, batch_index)).double()
            for count, nll in zip(self.mc_counts, self.test_nll_mc[name], strict=True):
                nll.update(-log_mean_exp(log_probs[:, :count], dim=1))

    def _mc_log_probs(self, inputs: Tensor, targets: Tensor, name: str, key: tuple[int, ...]) -> Tensor:
        """Log probabilities [T, K] of one stream's targets under each of the K sampled networks of an MC evaluation."""
        hidden = self._mc_hidden(inputs, name, key)
        targets = targets.expand(-1, hidden.size(1))
        rows = zip(hidden.flatten(0, 1).split(LOGIT_ROWS), targets.flatten().split(LOGIT_ROWS), strict=True)
        nll = torch.cat([softmax_nll(h, self.softmax.weight, self.softmax.bias, t)[1] for h, t in rows])
        log_probs = -nll.view_as(targets)
        if self._trainer and self._trainer.world_size > 1:
            log_probs = torch.cat(list(self.all_gather(log_probs)), dim=1)[:, : self.mc_samples]
        return log_probs

    def _mc_hidden(self, inputs: Tensor, name: str, key: tuple[int, ...]) -> Tensor:
        """The softmax layer's input [T, K, H] in each of the K sampled networks of an MC evaluation of one stream.

        The samples are streamed at once as rows of one batch, each with a state and masks of its own, and every process
        takes a part of them. `key` says for which window masks are drawn, if they are.
        """
        world_size = self._trainer.world_size if self._trainer else 1
        share = -(-self.mc_samples // world_size)
        if inputs.size(1) != 1:
            raise ValueError(f"mc_samples={self.mc_samples} needs one stream, windows [T, 1], got {list(inputs.shape)}")
        inputs = inputs.expand(-1, share)
        kept = self.mc_passes[name]
        state, sample = self._mc.get(name, (None, None))
        if sample is None or kept == "window" or self.rnn.time_masks == "fresh":
            generator = self.generator(*key, list(self.mc_passes).index(name))
            sample = self.sample_masks(self.mc_samples, inputs.size(0), generator)
            if not (kept == "window" if self.mc_word_dropout is None else self.mc_word_dropout):
                sample = sample._replace(words=None)
            if world_size > 1:
                # Where processes cannot share them evenly, the last sample is computed more than once.
                own = [min(self.global_rank * share + k, self.mc_samples - 1) for k in range(share)]
                sample = sample.select(own, by_token=self.embedding.word_masks == "token")
        hidden, state = self._hidden(inputs, state, sample)
        self._mc[name] = (state if self.carry_state else None, sample)
        return hidden

    def on_test_epoch_end(self) -> None:
        """Log the test perplexities."""
        self.log("test_ppl", self.test_nll.compute().exp())
        self.test_nll.reset()
        if self.test_nll_sliding.update_called:
            self.log("test_ppl_sliding", self.test_nll_sliding.compute().exp())
            self.test_nll_sliding.reset()
        if self.mc_samples:
            for name, metrics in self.test_nll_mc.items():
                for count, nll in zip(self.mc_counts, metrics, strict=True):
                    self.log(name if count == self.mc_samples else f"{name}_{count}", nll.compute().exp())
                    nll.reset()
            self.log("mc_samples", float(self.mc_samples))

    def predict_step(
        self, batch: tuple[Tensor, Tensor], batch_index: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Surprisal -ln p(target) in nats of every word of a window, [T, B]: `approximation`, and `mc` as tested.

        Loader 1 serves the validation text, which is predicted by the approximation alone.
        """
        if batch_index == 0:
            self.on_test_epoch_start()
        surprisal = {"approximation": self._surprisal(batch)}
        for name in self.mc_passes if self.mc_samples and dataloader_idx == 0 else ():
            log_probs = self._mc_log_probs(*batch, name, (TEST, batch_index)).double()
            surprisal[name.removeprefix("test_ppl_")] = -log_mean_exp(log_probs, dim=1)[:, None]
        return surprisal

    @torch.inference_mode()
    def test_time_nll(
        self, windows: StreamWindows, stage: int, temperatures: list[float]
    ) -> dict[tuple[str, str | None], Tensor]:
        """Mean surprisal of one stream's words for each way to predict at test time, from one pass over it.

        The ways are the dropout approximation, and the "arithmetic" and the "geometric" mean of the probabilities under
        `mc_samples` sampled networks, the latter divided by its sum over the vocabulary. All means are of the same
        networks, with TEST those that a test with as many samples has. A temperature divides the logits of every
        network. The model is put into eval mode, and computes in its parameters' precision.

        Args:
            windows: of the stream, B = 1.
            stage: VALIDATION or TEST, for which networks are sampled.
            temperatures: N of them.

        Returns:
            By kind of mean and what masks are kept for, ("arithmetic", "stream"), in nats: [N, number of `mc_counts`]
            for the first 1, 2, 5, ... networks; ("approximation", None): [N, 1].
        """
        self.eval()
        self.on_test_epoch_start()
        totals: dict[tuple[str, str | None], Tensor] = {}
        words = 0

        def add(mean: str, kept: str | None, nll_NTC: Tensor) -> None:
            totals[mean, kept] = totals.get((mean, kept), 0) + nll_NTC.sum(dim=1)

        for index in range(len(windows)):
            inputs, targets = (ids.to(self.device) for ids in windows[index])
            words += len(targets)
            hidden, state = self._hidden(inputs, self._eval_state, None)
            self._eval_state = state if self.carry_state else None
            add("approximation", None, _tempered_nll(self.softmax(hidden), targets, temperatures))
            for name, kept in self.mc_passes.items() if self.mc_samples else ():
                hidden = self._mc_hidden(inputs, name, (stage, index))
                steps = max(1, LOGIT_ROWS // self.mc_samples)
                for hidden_TKH, targets_T1 in zip(hidden.split(steps), targets.split(steps), strict=True):
                    logits_TKV = self.softmax(hidden_TKH)
                    nll_NTK = _tempered_nll(logits_TKV, targets_T1, temperatures)
                    means = [-log_mean_exp(-nll_NTK[..., :count], dim=2) for count in self.mc_counts]
                    add("arithmetic", kept, torch.stack(means, dim=2))
                    # A geometric mean that is divided by its sum is the softmax of the mean logits.
                    logits_TCV = torch.stack([logits_TKV[:, :count].mean(dim=1) for count in self.mc_counts], dim=1)
                    add("geometric", kept, _tempered_nll(logits_TCV, targets_T1, temperatures))
        self.on_test_epoch_start()  # nothing is kept
        return {way: total / words for way, total in totals.items()}

    # --- other texts --------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def surprisals(self, text: str, mc_samples: int | None = None, seed: int = 0) -> Surprisals:
        """Predict every word of a text but the first from those before it, as in the test with mc_masks "stream".

        The model is put into eval mode. Each sampled network is kept for the whole text, and words are not dropped. The
        state starts from zeros and is carried on if it was in training. Memory does not grow with the text but for its
        words.

        Args:
            text: its lines end with newline characters.
            mc_samples: number K of sampled networks; by default 50, and 0 for a model without dropout.
            seed: of the sampled networks.

        Raises:
            ValueError: mc_samples or seed is out of range; the text is not a string, is blank, has a single word, or an
                unknown one where the vocabulary has no <unk>; or it is not known how the model reads texts.
        """
        reader, samples = self.known_reader(), self.checked_samples(mc_samples)
        check_text(text)
        [seed] = check_count(0, LARGEST_SEED, seed=seed)
        words, ids = reader.words(text), torch.tensor(reader.ids(text), device=self.device)
        if len(ids) < 2:
            raise ValueError("a text needs two words, the end of a line included: the first one is not predicted")
        self.eval()
        steps = max(1, LOGIT_ROWS // max(1, samples))
        windows = StreamWindows(ids[:, None], steps if self.carry_state else reader.window or steps, True)
        self._eval_state, state, masks = None, None, None
        approximation, mc, information = [], [], []
        for index in range(len(windows)):
            inputs, targets = windows[index]
            approximation.append(self._surprisal((inputs, targets)).squeeze(1))
            if not samples:
                continue
            if masks is None or self.rnn.time_masks == "fresh":
                generator = self.generator(TEST, index, 0, seed=seed)
                masks = self.sample_masks(samples, len(inputs), generator)._replace(words=None)
            hidden, state = self._hidden(inputs.expand(-1, samples), state, masks)
            state = state if self.carry_state else None
            for hidden_TKH, targets_T1 in zip(hidden.split(steps), targets.split(steps), strict=True):
                log_probs_KTV = self.softmax(hidden_TKH).log_softmax(dim=-1).transpose(0, 1)
                log_probs_KT = log_probs_KTV.gather(-1, targets_T1.expand(samples, -1, 1)).squeeze(-1)
                mc.append(-log_mean_exp(log_probs_KT.double()))
                information.append(mutual_information(log_probs_KTV))
        self._eval_state = None
        return Surprisals(
            words[1:],
            [reader.knows(word) for word in words[1:]],
            torch.cat(approximation).double(),
            torch.cat(mc) if mc else None,
            torch.cat(information) if information else None,
        )

    @torch.inference_mode()
    def generate(
        self,
        text: str,
        words: int,
        sequences: int = 1,
        temperature: float = 1.0,
        top_k: int | None = None,
        unknown: bool = True,
        sampled: bool = True,
        seed: int = 0,
    ) -> list[list[str]]:
        """Continue the last line of a text.

        The model is put into eval mode. Each sequence is of one sampled network, which reads the text and is kept to
        the end; words are not dropped. The state is carried on throughout.

        Args:
            text: what to continue; if it is empty a line begins.
            words: number of words of each sequence, from 1 to 100,000.
            sequences: number of sequences, from 1 to 1,000.
            temperature: divides the logits; 0 always takes the likeliest word.
            top_k: draw from this many likeliest words only, from 1 to the size of the vocabulary.
            unknown: whether <unk> may be drawn. If not, it is not among the top_k either.
            sampled: whether networks are sampled; if not, or if the model has no dropout, all sequences are by the
                dropout approximation.
            seed: of networks and words.

        Returns:
            The words of each sequence; <eos> ends a line.

        Raises:
            ValueError: an argument is out of range; text is not a string, or has an unknown word where the vocabulary
                has no <unk>; or it is not known how the model reads texts.
        """
        reader = self.known_reader()
        vocabulary = reader.vocabulary
        [words] = check_count(1, MOST_WORDS, words=words)
        [sequences] = check_count(1, MOST_SAMPLES, sequences=sequences)
        if top_k is not None:
            [top_k] = check_count(1, len(vocabulary), top_k=top_k)
        [temperature] = check_number(0, temperature=temperature)
        [seed] = check_count(0, LARGEST_SEED, seed=seed)
        self.eval()
        prompt = reader.ids(text)[:-1] or [vocabulary.index(EOS)]  # the last line goes on
        inputs = torch.tensor(prompt, device=self.device)[:, None].expand(-1, sequences)
        generator = self.generator(TEST, seed=seed)
        state, masks = None, None
        chosen: list[Tensor] = []
        while len(chosen) < words:
            for window in inputs.split(max(1, LOGIT_ROWS // sequences)):
                if sampled and (masks is None or self.rnn.time_masks == "fresh"):
                    masks = self.sample_masks(sequences, len(window), generator)._replace(words=None)
                hidden, state = self._hidden(window, state, masks)
            logits = self.softmax(hidden[-1]).double()[:, : len(vocabulary)]
            if not unknown and UNKNOWN in vocabulary:
                logits[:, vocabulary.index(UNKNOWN)] = -math.inf
            if top_k is not None:
                values, likeliest = logits.topk(top_k)  # exactly top_k, even if others are as likely
                logits = torch.full_like(logits, -math.inf).scatter(1, likeliest, values)
            if temperature == 0:
                inputs = logits.argmax(dim=-1)[None]
            else:
                # The largest is subtracted first, or a small temperature would make it infinite.
                logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
                inputs = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).T
            chosen.append(inputs[0])
        return [[vocabulary[i] for i in ids] for ids in torch.stack(chosen, dim=1).tolist()]


def _tempered_nll(logits: Tensor, targets: Tensor, temperatures: list[float]) -> Tensor:
    """Surprisal -ln softmax(logits / temperature)[target] in nats, [N, T, B], of N temperatures.

    Logits are [T, B, V]; the targets, [T, 1], are those of all B.
    """
    target = logits.gather(2, targets[:, None].expand(-1, logits.size(1), -1)).squeeze(2)
    highest = logits.amax(dim=2)
    below, buffer = logits - highest[..., None], torch.empty_like(logits)
    nll = [
        torch.div(below, temperature, out=buffer).exp_().sum(dim=2).log() + (highest - target) / temperature
        for temperature in temperatures
    ]
    return torch.stack(nll).double()


def _each(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply a function to each tensor of a state."""
    if state is None:
        return None
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)
