"""Reinforcement learning with trl's GRPOTrainer, for whatever draws its own rollouts, with the life of a run.

    step = grpo(
        model, drawer, settings, where, pad_id=0, weights=weights, evaluate=None, record={}, tokenizer=tokenizer,
        reference=model.memory_off,
    )

For every prompt a group of rollouts is drawn (arclab.lm.training.rollouts), by the method's own generation, without dropout.
The advantage of a rollout is its reward minus the mean of its group. Log-probabilities are computed again with a gradient by
the model's forward pass, which is given what a rollout brings with it (Rollout.extra), so that they are those of the policy
that drew: rl/offpolicy is how far they are apart on new rollouts. A rollout of several turns (Rollout.turns) is computed turn
by turn, each from the plain tokens before it, as it was drawn; what an environment said has no loss. Dropout is off in both,
for good: the model's Dropout layers are set to 0. With beta above 0 the loss has a KL divergence from the model inside
`reference()`.

The policy is what `policy` says, usually the next token (token_policy). It may be something else that is decided at tokens:
Rollout.is_policy says at which, and only they count in the loss, the entropy and rl/offpolicy.

The same command goes on as if nothing had happened: a checkpoint between two updates on the same rollouts (updates_per_rollout)
holds them, each rank's in a file. Only with another number of ranks are they drawn anew, which a warning says. It does not
sample with top-k or top-p: the policy that is trained is the one that is drawn from, here or by a vLLM server (vllm_url).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from arclab.files import naming
from arclab.lm.training.life import Evaluate, Kept, LivesInRun, RunLife, Weights
from arclab.lm.training.rollouts import Drawer, Drawn, Rollout, metrics_of
from arclab.lm.training.sft import StepSettings, Where, step_arguments
from arclab.lm.training.turns import TURN, turn_passes
from arclab.runs.checkpoints import CheckpointFolder
from arclab.runs.console import progress_bar

log = logging.getLogger(__name__)
_NAMES = {
    "loss": "rl/loss",
    "grad_norm": "grad/total_norm",
    "learning_rate": "train/lr",
    "kl": "rl/kl",
    "clip_ratio/region_mean": "rl/clip_share",
}
Reference = Callable[[], AbstractContextManager[Any]]
# (model, input_ids, attention_mask, number C of completion tokens, what rollouts bring) -> log-probabilities, entropies (B, C)
Policy = Callable[[Any, Tensor, Tensor, int, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpoSettings(StepSettings):
    """prompts_per_step: of all ranks, each with a group of rollouts. updates_per_rollout: steps on the same rollouts. loss:
    dapo (mean over all tokens of a step), grpo (mean over rollouts of the mean over their tokens) or dr_grpo (sum over
    tokens by rollouts x max_new_tokens). scale_rewards: advantages are divided by the standard deviation of their group, of
    the batch, or by none. clip_low, clip_high: how far the probability of a token may move below and above what it was.
    vllm_url: of the server that the drawer asks (served.py), which is sent the weights before each drawing."""

    prompts_per_step: int
    updates_per_rollout: int
    max_new_tokens: int
    temperature: float
    beta: float
    clip_low: float
    clip_high: float
    loss: str
    scale_rewards: str
    vllm_url: str | None = None


def token_policy(
    model: Any, input_ids: Tensor, attention_mask: Tensor, num_completion: int, extra: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Of the next token, at the temperature that trl has patched into the model's head; 0 where an environment spoke."""
    rest = {name: value for name, value in extra.items() if name != TURN}
    passes = turn_passes(input_ids, attention_mask, extra[TURN], rest)
    output = model(**passes.given, fused_lm_head=True)
    return passes.gathered(output.log_probs, num_completion), passes.gathered(output.entropy, num_completion)


def grpo(
    model: Any, drawer: Drawer, settings: GrpoSettings, where: Where, *, pad_id: int, weights: Weights,
    evaluate: Evaluate | None, record: Mapping[str, Any], tokenizer: Any, reference: Reference, policy: Policy = token_policy,
    kept: Kept | None = None, is_enough: Callable[[], bool] | None = None,
) -> int:  # fmt: skip
    """Train from wherever the run's folder stands, to cadence.steps or to where it is told to end; returns that step. model:
    its forward takes what rollouts bring with them. kept, is_enough: see life. ValueError: see
    LivesInRun.go_on, a batch that cannot be split, a step in which no reward could be computed."""
    ranks, cadence = where.ranks, where.cadence
    per_piece = _rows_per_piece(settings, drawer.settings.group_size, ranks.world_size)
    folder = CheckpointFolder(where.run.checkpoints, where.keep_last)
    done = folder.steps()[-1] if folder.steps() else 0
    rows_per_step = settings.prompts_per_step * drawer.settings.group_size
    with progress_bar(total=cadence.steps, initial=done, desc=where.title, unit="step", disable=not ranks.is_main) as bar:
        life = RunLife(
            cadence, where.run, ranks, logger=where.logger, monitor=where.monitor, stop=where.stop, bar=bar,
            evaluate=evaluate, rows_per_step=rows_per_step, names=_NAMES,
            divergence_remedy=f"lower {settings.key}.lr", is_enough=is_enough,
        )  # fmt: skip
        num_groups = math.ceil(cadence.steps / settings.updates_per_rollout) * settings.prompts_per_step
        with warnings.catch_warnings():
            # rollout_func is experimental: tests hold what it must do. trl asks transformers by an old name, at every step.
            for message in (".*'rollout_func'", ".*is_gradient_checkpointing"):
                warnings.filterwarnings("ignore", message=message)
            trainer = _Grpo(
                drawer, settings, where, reference, policy,
                model=model,
                args=_arguments(settings, where, per_piece, drawer.settings.group_size),
                train_dataset=Dataset.from_dict({"prompt": drawer.order(num_groups)}),
                processing_class=tokenizer,
                pad_id=pad_id,
            )  # fmt: skip
            return trainer.live(folder, weights, ranks, life, record, where.selection_metric, kept).go_on()


def _rows_per_piece(settings: GrpoSettings, group_size: int, world_size: int) -> int:
    """ValueError: groups that would be torn apart between ranks, or steps that cannot be computed in pieces."""
    if group_size < 2:
        raise ValueError(f"{settings.key}.group_size={group_size} leaves nothing to compare a rollout with; give at least 2.")
    if settings.prompts_per_step % world_size:
        raise ValueError(
            f"{settings.key}.prompts_per_step={settings.prompts_per_step} must be divisible by the number of ranks "
            f"({world_size}), so that each has whole groups; change it."
        )
    rows = settings.prompts_per_step * group_size // world_size
    if rows % settings.grad_accumulation:
        raise ValueError(
            f"{settings.key}.grad_accumulation={settings.grad_accumulation} must divide the {rows} rollouts of a rank in a "
            f"step ({settings.key}.prompts_per_step x {settings.key}.group_size / ranks); change one of them."
        )
    return rows // settings.grad_accumulation


def _arguments(settings: GrpoSettings, where: Where, per_piece: int, group_size: int) -> GRPOConfig:
    return GRPOConfig(
        **step_arguments(settings, where, per_piece),
        num_generations=group_size,
        steps_per_generation=settings.grad_accumulation,
        num_iterations=settings.updates_per_rollout,
        max_completion_length=settings.max_new_tokens,
        temperature=settings.temperature,
        beta=0.0,  # see _Grpo: trl would load a second model
        epsilon=settings.clip_low,
        epsilon_high=settings.clip_high,
        loss_type=settings.loss,
        scale_rewards=settings.scale_rewards,
        mask_truncated_completions=False,  # the drawer says what is part of the loss
        shuffle_dataset=False,  # the drawer has put it in order
        disable_dropout=True,
        use_vllm=settings.vllm_url is not None,
        vllm_mode="server",
        vllm_server_base_url=settings.vllm_url,
        log_completions=False,
        top_entropy_quantile=1.0,
        importance_sampling_level="token",
    )


class _Grpo(LivesInRun, GRPOTrainer):
    """Rollouts of the drawer in the place of trl's own generation, and the forward pass with what they bring."""

    def __init__(
        self, drawer: Drawer, settings: GrpoSettings, where: Where, reference: Reference, policy: Policy, *, pad_id: int,
        **given: Any,
    ) -> None:  # fmt: skip
        self._drawer, self._settings, self._where, self._reference = drawer, settings, where, reference
        self._policy, self._pad_id, self._is_placed = policy, pad_id, False
        self._extra: dict[str, Tensor] = {}  # of the rows that a forward pass is about to see; TURN is among them
        super().__init__(reward_funcs=[_as_drawn], rollout_func=self._rolled_out, **given)

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if not self._is_placed:  # a continued run stands where the whole one would
            self._step = int(self.state.global_step) * self.args.gradient_accumulation_steps
            self._is_placed = True
        return super()._prepare_inputs(generation_batch)

    @property
    def _uses_rollouts_again(self) -> bool:
        """Does the step after this one go on with the rollouts of this one?"""
        return int(self.state.global_step) % self._settings.updates_per_rollout > 0

    def _rollouts_file(self, checkpoint: str) -> Path:
        ranks = self._where.ranks
        return Path(checkpoint) / f"rollouts_{ranks.rank}_of_{ranks.world_size}.pt"

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._uses_rollouts_again:
            file = self._rollouts_file(output_dir)
            with naming(file):
                torch.save({"names": list(self._extra), "inputs": self._buffered_inputs}, file)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is None or not self._uses_rollouts_again or self._buffered_inputs is not None:
            return
        file = self._rollouts_file(checkpoint)
        if not file.is_file():
            log.warning("%s has no rollouts of this number of ranks: they are drawn anew", checkpoint)
            return
        kept = torch.load(file, map_location=self.accelerator.device, weights_only=True)
        self._buffered_inputs = kept["inputs"]
        self._extra = {name: kept["inputs"][0][name] for name in kept["names"]}

    def _rolled_out(self, prompts: Any, _: Any) -> dict[str, Any]:
        """prompts: the numbers of this rank's, each group_size times."""
        ranks, size = self._where.ranks, self._drawer.settings.group_size
        numbers = prompts[::size]
        assert all(number == numbers[place // size] for place, number in enumerate(prompts)), "a group was torn apart"
        drawing = int(self.state.global_step) // self._settings.updates_per_rollout
        model: Any = self.model
        was_training = model.training
        model.eval()
        with self._life.spending("timing/rollout_share"):
            drawn = self._drawer.drawn(numbers, drawing, first=ranks.rank * len(numbers))
        model.train(was_training)
        self._write_down(drawn)
        rows = [row.rollout for row in drawn.rows]
        given = [{**row.extra, TURN: [0] * len(row.prompt_ids) + row.turn_numbers} for row in rows]
        self._extra = {name: self._padded(rows, [each[name] for each in given]) for name in given[0]}
        longest = max(len(row.completion_ids) for row in rows)
        decided = [[*_is_policy(row), *[False] * (longest - len(row.completion_ids))] for row in rows]
        self._is_policy_BC = torch.tensor(decided, device=self.accelerator.device)
        return {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.completion_ids for row in rows],
            "logprobs": [row.logprobs for row in rows],
            "env_mask": [[int(row.is_counted and does) for does in _is_policy(row.rollout)] for row in drawn.rows],
            "reward": [row.reward for row in drawn.rows],
        }

    def _write_down(self, drawn: Drawn) -> None:
        """ValueError, on every rank: no reward of the step could be computed."""
        told = self._where.ranks.gather_objects((drawn.sums(self._drawer.settings.group_size), drawn.failures[:1]))
        metrics = metrics_of([sums for sums, _ in told])
        if metrics["rl/failed_share"] == 1.0:
            why = next(failures[0] for _, failures in told if failures)
            raise ValueError(
                f"no reward of step {int(self.state.global_step)} could be computed ({why}); correct the reward function, then "
                "start the same command again."
            )
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    def _padded(self, rows: Sequence[Rollout], given: Sequence[Sequence[int]]) -> Tensor:
        """Prompts end, and completions begin, in the same column, as trl pads tokens."""
        before = max(len(row.prompt_ids) for row in rows)
        after = max(len(row.completion_ids) for row in rows)
        padded = torch.zeros(len(rows), before + after, dtype=torch.long)
        for place, (row, values) in enumerate(zip(rows, given, strict=True)):
            assert len(values) == len(row.prompt_ids) + len(row.completion_ids)
            start = before - len(row.prompt_ids)
            padded[place, start : start + len(values)] = torch.tensor(values)
        return padded.to(self.accelerator.device)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        output |= {**self._extra, "is_policy_BC": self._is_policy_BC}
        if self._settings.beta > 0:
            ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
            mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
            per_piece = self.args.per_device_train_batch_size
            with torch.no_grad(), self._reference():
                output["ref_per_token_logps"], _, _ = self._get_per_token_logps_and_entropies(
                    self.model, ids, mask, output["completion_ids"].shape[1], batch_size=per_piece
                )
        return output

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, batch_size: int | None = None,
        compute_entropy: bool = False, **_: object,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # fmt: skip
        """(B, C) of the last logits_to_keep tokens, at the policy's temperature."""
        size = batch_size or len(input_ids)
        parts = [slice(start, start + size) for start in range(0, len(input_ids), size)]
        found = [
            self._policy(
                model, input_ids[rows], attention_mask[rows], logits_to_keep,
                {name: value[rows] for name, value in self._extra.items()},
            )
            for rows in parts
        ]  # fmt: skip
        logprobs, entropies = (torch.cat(part) for part in zip(*found, strict=True))
        self._seen = (logprobs.detach(), entropies.detach())
        return logprobs, entropies if compute_entropy else None, None

    def _compute_loss(self, model: Any, inputs: Any) -> Tensor:
        self._extra = {name: inputs[name] for name in self._extra}
        self.beta = self._settings.beta
        loss = super()._compute_loss(model, inputs)
        self.beta = 0.0  # while rollouts are drawn: trl asks its own reference model there
        mask_BC = inputs["completion_mask"] * inputs["is_policy_BC"]
        logprob_BC, entropy_BC = self._seen
        apart_BC = (logprob_BC - inputs["sampling_per_token_logps"]).abs()
        sums = torch.stack([(apart_BC * mask_BC).sum(), (entropy_BC * mask_BC).sum(), mask_BC.sum().float()])
        summed: Any = self.accelerator.reduce(sums, reduction="sum")
        apart, entropy, count = summed.tolist()
        count = max(count, 1.0)  # a step in which nothing was decided
        if int(self.state.global_step) % self._settings.updates_per_rollout == 0:  # later the policy is another one
            self._metrics["train"]["rl/offpolicy"].append(apart / count)
        self._metrics["train"]["rl/entropy"].append(entropy / count)
        return loss


def _is_policy(rollout: Rollout) -> list[bool]:
    """What an environment said is nobody's policy."""
    return [turn > 0 for turn in rollout.turn_numbers] if rollout.is_policy is None else rollout.is_policy


def _as_drawn(prompts: Any, completions: Any, completion_ids: Any, reward: Sequence[float | None], **_: object) -> Any:
    return list(reward)
