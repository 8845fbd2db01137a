"""The loop of `fine_tuning`: model, schedule and journal around the transformers Trainer.

Its data come from `training_data`.
"""

from __future__ import annotations

__all__ = ["device", "load", "save", "set_seed", "train"]

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.nn.functional import mse_loss
from torch.optim.lr_scheduler import LambdaLR
from transformers import BertConfig, PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from segue.errors import InputError
from segue.export import pretraining
from segue.export.pretraining import BertForPreTraining, LossTrainer, precision
from segue.export.pretraining_data import collate
from segue.export.tokenizer import read_tokenizer
from segue.export.training_data import Batches
from segue.export.vocabulary import write_vocabulary

_WARM_UP = 0.06  # of the run
_ENDLESS = 10**9  # steps; the clock ends such a run
_LOSSES = ("nsp_loss", "mlm_loss", "cosine_loss")


def train(
    model: BertForPreTraining,
    tokenizer: Tokenizer,
    batches: Batches,
    *,
    out: Path,
    steps: int | None,
    seconds: float | None,
    learning_rate: float,
    seed: int,
    threads: int | None,
    train_words: bool,
    cosine_weight: float,
    dropout: float,
    saves: int,
    watch: Callable[..., dict[str, float]] | None,
) -> dict[str, Any]:
    """Train the model in place for that many steps or seconds; return how it went."""
    if threads:
        torch.set_num_threads(threads)
    model.bert.embeddings.word_embeddings.weight.requires_grad = train_words
    _narrow(model.bert.encoder.layer[-1])
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):  # none on attention weights: their fast kernels lack it
            module.p = 0.0 if name.endswith("attention.self.dropout") else dropout
    cosine = torch.nn.Linear(model.config.hidden_size, 1)  # never saved
    groups = [*_groups(model), {"params": cosine.parameters(), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    progress = _by_clock(seconds) if seconds else lambda step: step / steps
    journal = _Journal(tokenizer, progress, out, saves, watch)
    trainer = _Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out),
            max_steps=steps or _ENDLESS,
            per_device_train_batch_size=batches.batch_size,
            max_grad_norm=1.0,
            logging_steps=20,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=seed,
            dataloader_num_workers=int(torch.cuda.is_available()),  # else the GPU waits for words to be read
            **precision(),
        ),
        train_dataset=batches,
        data_collator=collate,
        optimizers=(optimizer, LambdaLR(optimizer, lambda step: _schedule(progress(step)))),
        callbacks=[journal],
    )
    trainer.cosine, trainer.cosine_weight = cosine.to(trainer.args.device), cosine_weight
    trainer.remove_callback(PrinterCallback)  # the journal prints
    started = time.monotonic()
    trainer.train()
    return {
        "steps": trainer.state.global_step,
        "pairs": trainer.state.global_step * batches.batch_size,
        "seconds": round(time.monotonic() - started, 1),
        "learning_rate": learning_rate,
        "seed": seed,
        "curve": journal.curve,
    }


def device() -> torch.device:
    """Where models are trained and judged: on a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load(init: Path, *, max_tokens: int) -> tuple[BertForPreTraining, Tokenizer]:
    """The checkpoint with both heads, new where it has none, in float32 on `device()`, and its tokenizer."""
    file = init / "config.json"
    if not file.is_file():
        raise InputError(f"init: {str(init)!r} is no checkpoint folder, it has no config.json")
    kind = json.loads(file.read_text()).get("model_type")
    if kind != "bert":
        raise InputError(f"init: expected a BERT checkpoint, {str(init)!r} is {kind!r}")
    config = BertConfig.from_pretrained(init)
    tokenizer = read_tokenizer(init, config.vocab_size)
    if tokenizer.get_vocab_size() + 128 <= config.vocab_size:  # padding for speed leaves fewer spare rows
        raise InputError(
            f"init: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {config.vocab_size}"
        )
    if not 8 <= max_tokens <= config.max_position_embeddings:
        raise InputError(f"max_tokens: expected 8 to {config.max_position_embeddings}, got {max_tokens}")
    model = pretraining.load(init)
    for parameter in model.parameters():  # else a view of the file, lost if that is overwritten meanwhile
        parameter.data = parameter.data.clone()
    return model.to(device()), tokenizer


def save(model: BertForPreTraining, tokenizer: Tokenizer, out: Path) -> None:
    """Write a checkpoint folder that transformers and segue load."""
    model.save_pretrained(out)
    write_vocabulary(tokenizer, out, max_tokens=model.config.max_position_embeddings)


def _narrow(layer: torch.nn.Module) -> None:
    """Let the last layer compute only the [CLS] row where no masked word is asked for: nothing else is read
    then, and it spares a seventh of a six-layer model's work. Exact, and not saved with the model."""
    whole = layer.forward

    def forward(hidden: torch.Tensor, attention_mask: torch.Tensor | None = None, *args: Any, **options: Any):
        if not layer.narrow:
            return whole(hidden, attention_mask, *args, **options)
        attention = layer.attention.self
        shape = hidden.shape[0], -1, attention.num_attention_heads, attention.attention_head_size
        cls = hidden[:, :1]
        reads = (attention.query, cls), (attention.key, hidden), (attention.value, hidden)
        query, key, value = (linear(rows).view(shape).transpose(1, 2) for linear, rows in reads)
        mask = attention_mask if attention_mask is None else attention_mask[:, :, :1]
        context = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended = layer.attention.output(context.transpose(1, 2).flatten(2), cls)
        return layer.output(layer.intermediate(attended), attended)

    layer.forward, layer.narrow = forward, True


class _Trainer(LossTrainer):
    """Tells the last layer what a batch needs, and adds the loss of its cosines, if it has any."""

    cosine: torch.nn.Linear
    cosine_weight: float
    tokens: torch.Tensor | int = 0  # read so far
    errors: torch.Tensor | int = 0  # the cosines' summed losses and their number since the last log

    def compute_loss(self, model, inputs, *args, **options):
        self.tokens += inputs["attention_mask"].sum()
        model.bert.encoder.layer[-1].narrow = "labels" not in inputs
        cosines, pooled = inputs.pop("similarity", None), []
        with model.bert.pooler.register_forward_hook(lambda module, arguments, output: pooled.append(output)):
            loss = super().compute_loss(model, inputs, *args, **options)
        if cosines is None:
            return loss
        error = mse_loss(self.cosine(pooled[0].float()).squeeze(-1), cosines)
        self.errors += torch.stack([error.detach(), torch.ones_like(error)])
        return loss + self.cosine_weight * error

    def log(self, logs: dict[str, float], *args: Any) -> None:
        logs = logs | {"tokens": int(self.tokens)}
        if "loss" in logs and isinstance(self.errors, torch.Tensor):
            total, count = self.errors.tolist()
            logs, self.errors = logs | {"cosine_loss": total / count}, 0
        super().log(logs, *args)


def _groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    """Weight decay for matrices alone, not for biases and LayerNorms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def _schedule(progress: float) -> float:
    """The learning rate's factor: linear warm-up, then linear decay to zero at progress 1."""
    return max(0.0, min(progress / _WARM_UP, (1 - progress) / (1 - _WARM_UP)))


def _by_clock(seconds: float) -> Callable[[int], float]:
    """Progress by time, from step 0 on."""
    started = time.monotonic()

    def progress(step: int) -> float:
        nonlocal started
        if step == 0:
            started = time.monotonic()
        return (time.monotonic() - started) / seconds

    return progress


class _Journal(TrainerCallback):
    """Prints the loss, keeps the curve, writes intermediate checkpoints, ends a run whose time is up."""

    def __init__(self, tokenizer, progress, out, saves, watch) -> None:
        self.tokenizer, self.progress, self.out = tokenizer, progress, out
        self.saves, self.saved, self.watch = saves, 0, watch
        self.curve: list[dict[str, float]] = []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.started = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in logs:
            seconds = time.monotonic() - self.started
            losses = {task: round(logs[task], 4) for task in _LOSSES if task in logs}
            point = {"step": state.global_step, "seconds": round(seconds), **losses}
            self.curve.append(point)
            rate, speed = float(logs["learning_rate"]), logs["tokens"] / seconds
            print(
                *(f"{k} {v}" for k, v in point.items()), f"rate {rate:.2e} tokens/s {speed:.0f}", flush=True
            )

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        progress = self.progress(state.global_step)
        control.should_training_stop |= progress >= 1
        if self.saved < self.saves and progress >= (self.saved + 1) / (self.saves + 1):
            self.saved += 1
            save(model, self.tokenizer, self.out / f"checkpoint-{state.global_step}")
            if self.watch:
                print("checkpoint", state.global_step, self.watch(model, self.tokenizer), flush=True)
