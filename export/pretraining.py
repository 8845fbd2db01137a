"""The loop of `segue pretrain`: BERT with both heads, in the transformers Trainer, and its evaluation.

Its model comes from `pretraining_model`, its instances from `pretraining_data`; `pretraining_run` manages the
folder of a run.
"""

from __future__ import annotations

__all__ = [
    "BertForPreTraining",
    "LossTrainer",
    "evaluate",
    "load",
    "new",
    "precision",
    "rank_zero_first",
    "set_up",
    "train",
]

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from segue.export.instances import IS_NEXT
from segue.export.pretraining_data import Course, Instances, collate
from segue.export.pretraining_model import BertForPreTraining, load, new
from segue.export.pretraining_run import drop_older, mark_complete

_LOG_STEPS = 20  # at most
_SILENCE = 60.0  # seconds between log lines without a bar
_TASKS = ("mlm_loss", "nsp_loss")


def train(
    model: BertForPreTraining,
    instances: Instances,
    out: Path,
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    warm_up: float,
    seed: int,
    save_steps: int,
    resume_from: Path | None,
) -> list[dict[str, float]]:
    """Train the model in place, resuming from a checkpoint in `out` if given; return the curve: step,
    learning_rate, mlm_loss and nsp_loss (nats, means since the point before).

    The same arguments give the same model, bit for bit on a CPU, in one go or resumed. `batch_size` is per
    device. Loss is the mean over the masked tokens of a batch plus the mean over its pairs.
    """
    # No curve window spans a checkpoint, so that a resumed run logs the same as an uninterrupted one.
    log_steps = next(n for n in range(min(_LOG_STEPS, save_steps), 0, -1) if save_steps % n == 0)
    args = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=0.01,  # of matrices alone; this, the betas and the decay of the rate are BERT's
        lr_scheduler_type="linear",
        warmup_steps=round(warm_up * steps),
        max_grad_norm=1.0,
        **precision(),
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        label_names=["labels", "next_sentence_label"],
        logging_steps=log_steps,
        logging_nan_inf_filter=False,
        save_steps=save_steps,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
    )
    course = Course(instances, steps * args.train_batch_size * args.world_size)
    trainer = LossTrainer(
        model=model, args=args, train_dataset=course, data_collator=collate, callbacks=[_Progress()]
    )
    trainer.remove_callback(transformers.PrinterCallback)  # the bar shows what it would print
    trainer.train(resume_from_checkpoint=resume_from and str(resume_from))
    names = ("step", "learning_rate", *_TASKS)
    return [{n: point[n] for n in names} for point in trainer.state.log_history if "mlm_loss" in point]


def evaluate(model: BertForPreTraining, instances: Instances, count: int) -> dict[str, Any]:
    """Losses (nats) and accuracies of both tasks on the first `count` instances, or all if there are fewer,
    and their share of IsNext; mlm is over all their masked tokens together, None if nothing was masked."""
    count = min(count, len(instances))
    sums = torch.zeros(5, dtype=torch.float64)
    masked = 0
    model.eval()
    for start in range(0, count, 32):
        batch = collate([instances[i] for i in range(start, min(start + 32, count))])
        batch = {name: values.to(model.device) for name, values in batch.items()}
        with torch.no_grad():
            words, labels, pairs = model.read(**batch)
        follows = batch["next_sentence_label"]
        masked += len(labels)
        parts = [
            cross_entropy(words, labels, reduction="sum"),
            (words.argmax(-1) == labels).sum(),
            cross_entropy(pairs, follows, reduction="sum"),
            (pairs.argmax(-1) == follows).sum(),
            (follows == IS_NEXT).sum(),
        ]
        sums += torch.stack([part.double() for part in parts]).cpu()
    mlm = [round(value, 6) for value in (sums[:2] / masked).tolist()] if masked else [None, None]
    nsp = [round(value, 6) for value in (sums[2:] / count).tolist()]
    names = ("mlm_loss", "mlm_accuracy", "nsp_loss", "nsp_accuracy", "is_next")
    return {"instances": count, "masked_tokens": masked, **dict(zip(names, (*mlm, *nsp), strict=True))}


def precision() -> dict[str, bool]:
    """The `TrainingArguments` that put a run on a GPU in mixed precision, or on the CPU in float32."""
    on_gpu = torch.cuda.is_available()
    halves = on_gpu and torch.cuda.is_bf16_supported()
    return {
        "bf16": halves,
        "fp16": on_gpu and not halves,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
    }


def set_up(seed: int, threads: int | None) -> None:
    """Seed the random numbers that new weights are drawn from, and set the CPU threads.

    Quietens transformers: a bar for each checkpoint's files would run across ours, and a warning calls a
    checkpoint without the words' head corrupted.
    """
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    set_seed(seed)
    if threads:
        torch.set_num_threads(threads)


@contextmanager
def rank_zero_first(out: Path) -> Iterator[tuple[bool, int]]:
    """With several processes, run the body in the first, then in the others; yields whether it is the first,
    and how many devices train."""
    args = TrainingArguments(
        output_dir=str(out), use_cpu=not torch.cuda.is_available(), report_to="none", disable_tqdm=True
    )
    with args.main_process_first(local=False, desc="data"):
        yield args.process_index == 0, args.world_size * max(1, args.n_gpu)


class LossTrainer(Trainer):
    """Keeps the two tasks' losses apart: a log has the mean of each over the batches that taught it."""

    def __init__(self, *, model: BertForPreTraining, **options: Any) -> None:
        model.accepts_loss_kwargs = False  # transformers 5.23 would not divide the loss under accumulation
        super().__init__(model=model, **options)
        self.sums = torch.zeros(2, len(_TASKS), dtype=torch.float64, device=self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        for i, task in enumerate(_TASKS):
            if task in outputs:
                self.sums[0, i] += outputs[task].detach().mean().double()
                self.sums[1, i] += 1
        loss = outputs["loss"].mean()  # over devices, if there are several
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            sums, batches = self.accelerator.gather(self.sums[None]).sum(0)
            logs |= {task: (s / n).item() for task, s, n in zip(_TASKS, sums, batches, strict=True) if n}
            self.sums.zero_()
        super().log(logs, start_time)


class _Progress(TrainerCallback):
    """Shows a bar with both losses on the first process's terminal, or logs a line now and then if there is
    none; marks complete checkpoints."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.next = time.monotonic()
        hidden = not state.is_world_process_zero or None  # None hides it where stderr is no terminal
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", disable=hidden)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.bar.update(state.global_step - self.bar.n)
        control.should_log |= state.global_step == state.max_steps  # or the curve would lack its end

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "mlm_loss" in logs:
            self.bar.set_postfix(mlm=f"{logs['mlm_loss']:.3f}", nsp=f"{logs['nsp_loss']:.3f}")
            if self.bar.disable and state.is_world_process_zero and time.monotonic() >= self.next:
                self.next = time.monotonic() + _SILENCE
                logging.getLogger("segue").info(
                    "step %d of %d: losses of masked words %.3f, of next sentences %.3f",
                    *(state.global_step, state.max_steps, logs["mlm_loss"], logs["nsp_loss"]),
                )

    def on_save(self, args, state, control, **kwargs) -> None:
        args.distributed_state.wait_for_everyone()  # each process writes its own random state
        if state.is_world_process_zero:
            mark_complete(Path(args.output_dir) / f"checkpoint-{state.global_step}")
            drop_older(Path(args.output_dir))

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.bar.close()
