"""Every metric there is: name, unit, direction, healthy range and meaning. Logger, W&B, report and docs read this.

A name that is not here cannot be logged. ARC/pass@k and solved@k exist for every k in PASS_KS and SOLVED_KS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arclab.metrics.edit_names import EDITS
from arclab.metrics.knowledge_names import KNOWLEDGE
from arclab.metrics.recursive_names import ADAPT, ENCODER, PUZZLE
from arclab.metrics.seal_names import SEAL
from arclab.metrics.test_time_names import TEST_TIME

PASS_KS = (1, 2, 5, 10, 100, 1000)
SOLVED_KS = (1, 2)


@dataclass(frozen=True, slots=True)
class Metric:
    """direction: up (more is better), down, or none. healthy: the range in which nothing needs a look, or None."""

    name: str
    unit: str
    direction: str
    meaning: str
    healthy: tuple[float, float] | None = None


_INF = float("inf")
_HALTED = "over the rows that halted since the last log"
_NEW_COLORS = "a colour (not black) that their input does not show: demonstrations must tell it"
_ALL = "over every augmented copy of every scored test input"

# Of methods that answer questions in words: over all scored questions.
_TEXT = {
    "accuracy": ("share", "up", "questions that are answered right: see the data set"),
    "count": ("questions", "none", "questions that were answered: the N of the other text/ shares"),
    "no_answer_share": (
        "share",
        "down",
        "replies without an answer (a box, a program, a name in its tags); they count as wrong",
    ),
    "cut_share": ("share", "down", "replies that ended at sampling.max_new_tokens"),
    "insertions": ("insertions", "none", "insertions of memory in a reply, the one at the end of the prompt included"),
    "insert_share": (
        "share",
        "none",
        "delimiters in replies, while insertions were left, after which the trigger inserted memory",
    ),
    "tokens_per_reply": ("tokens", "none", "tokens of a reply, its end token included"),
    "turns": ("turns", "none", "replies of an episode in several turns"),
    "turns_cut_share": ("share", "down", "episodes in several turns that were not over after dataset.max_turns"),
    "off_accuracy": ("share", "up", "accuracy on the same questions without memory"),
    "random_accuracy": ("share", "up", "accuracy on the same questions with a weaver that was never trained"),
    "start_accuracy": ("share", "up", "accuracy on the same questions with the weaver as reinforcement learning began with it"),
    "always_accuracy": (
        "share",
        "up",
        "accuracy on the same questions with memory after every delimiter; of trainer=trigger_grpo",
    ),
    "never_accuracy": ("share", "up", "the same with memory at the end of the prompt alone"),
    "random_trigger_accuracy": ("share", "up", "the same with memory after every second delimiter, at random"),
    "memory_wins": (
        "share",
        "up",
        "of the questions on which the trained weaver and the best control disagree, those that it gets right; 0.5: chance",
    ),
    "discordant": ("questions", "none", "questions on which they disagree: the N of memory_wins"),
    "p_value": ("probability", "down", "of such a difference by chance (McNemar's exact test, two-sided)"),
}
# Of policies that learn from their own search (methods/tree_search/learning), on tasks that none of them has learned from.
_LEARNED = {
    "wins": (
        "share",
        "up",
        "of the tasks on which the trained policy and its best control disagree, those that it solves; 0.5: chance; 0 if the "
        "twin taught with programs of other tasks has gained as well (p < 0.05)",
    ),
    "discordant": ("tasks", "none", "tasks on which they disagree: the N of wins"),
    "p_value": ("probability", "down", "of such a difference by chance (McNemar's exact test, two-sided)"),
    "start_solved": ("share", "up", "ARC/solved@2 of the policy that the first round began with"),
    "twin_solved": ("share", "up", "ARC/solved@2 of the twin that was taught with programs of other tasks"),
    "search_solved": ("share", "up", "ARC/solved@2 of the trained policy with the search alone, without its reward model"),
    "search_count": ("programs", "none", "programs that this search ended, all tasks together"),
    "search_tokens": ("tokens", "none", "tokens that it generated"),
    "sampling_solved": ("share", "up", "ARC/solved@2 of the trained policy by plain sampling of as many programs"),
    "sampling_count": ("programs", "none", "programs that were sampled, all tasks together"),
    "sampling_tokens": ("tokens", "none", "tokens that were sampled"),
    "start_sampling_solved": ("share", "up", "ARC/solved@2 of the start by plain sampling of as many programs"),
    "start_sampling_count": ("programs", "none", "programs that were sampled from the start, all tasks together"),
    "start_sampling_tokens": ("tokens", "none", "tokens that were sampled from the start"),
    "start_valued_solved": ("share", "up", "ARC/solved@2 of the start with the reward model that learned from its trees"),
    "start_valued_count": ("programs", "none", "programs that this search ended, all tasks together"),
    "start_valued_tokens": ("tokens", "none", "tokens that it generated"),
    "twin_p_value": ("probability", "none", "of the twin's difference from the start by chance"),
    "task_perplexity": ("perplexity", "down", "of a token of programs of tasks that were held out whole"),
    "example_perplexity": ("perplexity", "down", "of a token of programs that were held out, of tasks that are learned from"),
}
# Latents that are optimised at test time: over all insertions of all replies.
_LTPO = {
    "reward_before": ("reward", "none", "reward of the latents as the weaver wrote them"),
    "reward_after": ("reward", "up", "reward of the latents that were inserted, without noise"),
    "raised_share": ("share", "up", "insertions whose reward rose"),
    "moved": ("ratio", "none", "root mean square of the change of latents, relative to their own"),
    "count": ("insertions", "none", "insertions that were optimised"),
}
# Of contexts that are searched at test time: over every augmented copy of every scored test input.
_SEARCH = {
    "loss_before": ("nats", "none", "loss of the demonstrations at the start of the search, per cell"),
    "loss_after": ("nats", "down", "the same loss of the context that was used"),
    "best_step": ("steps", "none", "the step of the search at which that context was found; 0: it is the start"),
    "shared": ("share", "none", "copies whose search left no demonstration out, by its loss or for want of a second one"),
}
# Of a model that was adapted to each task, beside the same one as it is: over scored tasks with known answers.
_ADAPTED = {
    "plain_solved@2": ("share", "none", "tasks solved by the model as it is, with two attempts"),
    "wins": ("share", "up", "of the tasks that one of the two alone solves, those of the adapted model; 0.5: chance"),
    "discordant": ("tasks", "none", "tasks that one of the two alone solves: the N of wins"),
    "p_value": ("probability", "down", "of such a difference by chance (McNemar's exact test, two-sided)"),
}

# Reinforcement learning of language models: means over the rollouts of a step, since the last log. Those that were drawn anew
# for groups without a difference count in timing/rollouts_per_s, rl/dropped_share, rl/entropy and rl/offpolicy alone.
_RL = {
    "loss": ("", "none", "the loss of GRPO; it stands near 0 however good the policy is, so look at rl/reward"),
    "reward": ("", "up", "reward of a rollout"),
    "reward_std": ("", "none", "standard deviation of the reward over rollouts"),
    "reward_right": ("share", "up", "rollouts that are right: a boxed answer, a program, an answer found by searching"),
    "reward_boxed": ("share", "up", "rollouts that have a boxed answer"),
    "reward_tests": ("share", "up", "tests of a function that a rollout's program passes; no part of the reward"),
    "reward_test_solved": (
        "share",
        "up",
        "rollouts whose program also answers the ARC task's test inputs; no part of the reward",
    ),
    "reward_exact": ("share", "up", "rollouts whose answer is one of the right names; the reward with dataset.reward=exact"),
    "reward_f1": (
        "share",
        "up",
        "words in common of a rollout's answer and the nearest right name; the reward with dataset.reward=f1",
    ),
    "reward_delta": ("", "up", "what an edit adds to the worth of its program, costs taken off: the reward of program edits"),
    "reward_program": (
        "",
        "up",
        "what the new program of an edit is worth, costs taken off; no part of the reward, as what follows",
    ),
    "reward_code": ("share", "up", "edits that have a new program"),
    "reward_syntax": ("share", "up", "demonstrations on which an edit's program compiles"),
    "reward_shape": ("share", "up", "demonstrations of which an edit's program answers the shape"),
    "reward_cells": ("share", "up", "right cells of an edit's program"),
    "reward_changed_cells": (
        "share",
        "up",
        "right cells of those that change from input to output, or that the program changed",
    ),
    "reward_cost": ("", "down", "what an edit pays for executions and thinking"),
    "thinking_tokens": ("tokens", "none", "tokens of thinking of an edit, as they are estimated"),
    "waits": ("waits", "none", "how often an edit was told to think on; only with think"),
    "capped_share": ("share", "down", "edits whose thinking was closed at think.max_tokens; only with think"),
    "turns": ("turns", "none", "replies of a rollout in several turns"),
    "turns_cut_share": ("share", "down", "rollouts in several turns that were not over after dataset.max_turns"),
    "zero_variance_share": ("share", "down", "groups whose rewards are all alike: nothing can be learned from them"),
    "dropped_share": (
        "share",
        "down",
        "rollouts that are no part of the loss: alike (also after refills), cut, or without reward",
    ),
    "failed_share": ("share", "down", "rollouts whose reward could not be computed"),
    "truncated_share": ("share", "down", "rollouts that ended at trainer.max_new_tokens"),
    "tokens": ("tokens", "none", "tokens of a rollout, its end token included"),
    "insertions": ("insertions", "none", "insertions of memory in a rollout, the one at the end of the prompt included"),
    "decisions": ("decisions", "none", "decisions of the trigger in a rollout; of trainer=trigger_grpo, as the next four"),
    "insert_share": ("share", "none", "of a rollout's decisions, those for memory; a rollout without any counts as 0"),
    "insert_target": ("share", "none", "mean of that over rollouts as good as the median: what sparsity measures against"),
    "sparsity_weight": ("", "none", "trainer.sparsity_weight: reward_sparsity times this is part of the reward"),
    "reward_sparsity": ("", "up", "minus the sum over decisions of what each is above insert_target, before its weight"),
    "kl": ("nats", "none", "KL divergence from the reference, per token; only with trainer.beta above 0"),
    "entropy": ("nats", "none", "entropy of the next token, over the tokens of rollouts, at the temperature they are drawn at"),
    "clip_share": ("share", "down", "tokens whose probability has moved so far that they are clipped"),
    "offpolicy": (
        "nats",
        "down",
        "mean absolute difference of a token's log-probability, as the sampler says and as the trainer computes it, on new "
        "rollouts",
    ),
}

# Of methods that write programs: over all replies of all scored tasks.
_PROGRAMS = {
    "count": (
        "replies",
        "none",
        "replies that were drawn (of a tree: programs that ended): the N of the shares of replies and of reward/*",
    ),
    "cut_share": ("share", "down", "replies that ended at sampling.max_new_tokens, with a program or without"),
    "with_program": ("share", "up", "replies that hold a program; the shares without_program_* are the others, by why"),
    "with_unfinished_program": ("share", "down", "replies whose program is not closed or was cut, but parses; of with_program"),
    "without_program_empty": ("share", "down", "replies of nothing, thinking left out"),
    "without_program_no_code": ("share", "down", "replies without any code"),
    "without_program_no_entry": ("share", "down", "replies with code that does not define the function asked for"),
    "without_program_unclosed_thinking": ("share", "down", "replies that ended, or were cut, while thinking"),
    "without_program_unclosed_fence": ("share", "down", "replies that ended within a program"),
    "without_program_cut": ("share", "down", "replies that were cut at sampling.max_new_tokens, within a program or before it"),
    "tasks_with_right": ("share", "up", "tasks for which some program reproduces every demonstration"),
    "tasks_skipped": (
        "tasks",
        "down",
        "tasks that were not tried because their prompt is longer than the context or refused by a filter; they count as wrong",
    ),
    "tokens_per_reply": ("tokens", "none", "tokens of a reply, its end mark included"),
    "tokens": ("tokens", "none", "tokens of all replies together; missing where a server does not tell"),
    "run": ("programs", "none", "programs that were run, those kept from earlier included"),
    "logprob_per_token": (
        "nats",
        "none",
        "log-probability of a token of a reply at temperature 1; missing where a server does not tell",
    ),
    "cpu_s": ("s", "none", "CPU time of a program with all of its inputs"),
    "nondeterministic_share": ("share", "down", "programs that read a clock, or answered something else in a second run"),
}

# Of an ensemble of finished results.
_ENSEMBLE = {
    "members": ("results", "none", "results that were merged"),
    "agreement": ("share", "none", "test inputs to which all members answer the same grid first"),
    "oracle_coverage": (
        "share",
        "up",
        "test inputs whose right grid is a candidate of any member: what merging can reach at most",
    ),
    "test_inputs": ("test inputs", "none", "test inputs with a known answer: the N of ensemble/oracle_coverage"),
    "best_member": ("share", "up", "ARC/pass@2 of the best member alone, chosen by these very answers"),
}

# Of solver=tree_search: draws are steps, or whole programs where these are drawn at once.
_TREE = {
    "coverage": (
        "share",
        "up",
        "tasks for which any program answers every test input right: what choosing better could reach at most",
    ),
    "programs_passing": ("programs", "up", "finished programs of a task that reproduce every demonstration"),
    "draws": ("draws", "none", "draws of all tasks: the N of the shares of draws"),
    "nodes": ("nodes", "none", "different draws of a task"),
    "depth": ("steps", "none", "steps of the deepest program of a task"),
    "rollouts": ("rollouts", "none", "rollouts of a task that was searched to its end"),
    "duplicate_share": ("share", "down", "draws that a sibling was already"),
    "invalid_share": ("share", "down", "draws whose program does not compile, raises, or was not run"),
    "refinement_share": ("share", "none", "draws that correct an earlier program"),
    "ended_program_end": ("share", "none", "draws that ended the program with its mark"),
    "ended_turn_end": ("share", "none", "draws that ended the model's turn without a mark"),
    "ended_max_depth": ("share", "down", "draws that made the program as deep as it may be"),
    "ended_max_tokens": ("share", "down", "draws that made the program as long as it may be"),
    "ended_invalid": ("share", "down", "steps after which the program does not compile, or raises"),
    "ended_cut": ("share", "down", "steps, or programs, without an end within their limit of tokens"),
    "ended_empty": ("share", "down", "steps of nothing"),
    "ended_context": ("share", "down", "draws for which the context had no room"),
    "ended_refused": ("share", "down", "draws that a server's filter refused"),
    "over_rollouts": ("share", "none", "tasks whose search made all of its rollouts"),
    "over_programs": ("share", "none", "tasks whose search finished all programs of its budget"),
    "over_draws": ("share", "none", "tasks whose search made all draws of its budget"),
    "over_tokens": ("share", "none", "tasks whose search generated all tokens of its budget"),
    "over_seconds": ("share", "none", "tasks whose search ran out of time"),
    "over_exhausted": ("share", "none", "tasks whose tree has nothing left to draw from"),
    "over_enough": ("share", "none", "tasks with as many different answers by right programs as search.stop_groups asks for"),
}

# Components of programs/rewards.py: means over the programs (replies) of a step.
_REWARD = {
    "value": ("", "up", "reward, by the kind that is trained on"),
    "program": ("", "up", "what programs are worth by themselves; differs from reward/value for kind delta, and for edits"),
    "code": ("share", "up", "replies with a program"),
    "syntax": ("share", "up", "replies with a program that compiles"),
    "runs": ("share", "up", "demonstrations for which the program returns a grid"),
    "shape": ("share", "up", "demonstrations for which the program returns a grid of the right shape"),
    "cells": ("share", "up", "cells of the demonstrations that are right; none where the shape is wrong"),
    "right": ("share", "up", "demonstrations that the program reproduces"),
    "solved": ("share", "up", "programs that reproduce every demonstration (which says nothing about test outputs)"),
    "cost": ("", "down", "what a right program pays for its length (smooth, delta), an edit for executions and thinking"),
}

_METRICS = [
    Metric("train/accuracy", "share", "up", f"labelled cells predicted right, {_HALTED}", (0.9, 1)),
    Metric("train/exact_accuracy", "share", "up", f"grids predicted exactly right, {_HALTED}", (0.9, 1)),
    Metric(
        "train/new_colors_exact",
        "share",
        "up",
        f"grids predicted exactly right of those with {_NEW_COLORS}, {_HALTED}",
    ),
    Metric("train/new_colors_count", "rows", "none", f"rows with {_NEW_COLORS} that halted since the last log"),
    Metric("train/lm_loss", "nats", "down", "stablemax cross-entropy per cell, mean over all rows of the batch"),
    Metric("train/q_halt_loss", "nats", "down", "binary cross-entropy of the halt logit, mean over all rows of the batch"),
    Metric("train/kl_loss", "nats", "none", "KL loss with its free bits, mean over rows, before its weight"),
    Metric(
        "train/encoder_kl",
        "nats",
        "none",
        "KL of the sampled task vector to its prior, without free bits: what the latent tells",
    ),
    Metric(
        "train/contrastive_loss", "nats", "down", "supervised-contrastive loss of contexts, mean over rows, before its weight"
    ),
    Metric("train/inner_before_loss", "nats", "down", "leave-one-out loss per cell before encoder.inner_steps, mean over rows"),
    Metric("train/inner_after_loss", "nats", "down", "the same of the moved contexts, with which the queries were answered"),
    Metric("train/reconstruction_loss", "nats", "down", "leave-one-out loss per cell, mean over rows, before its weight"),
    Metric("train/q_halt_accuracy", "share", "up", f"halt logit agrees with exactness, {_HALTED}", (0.85, 1)),
    Metric("train/steps", "steps", "none", f"mean supervision steps, {_HALTED}"),
    Metric("train/forced_halt_share", "share", "none", f"halted by the step limit and not by their halt logit, {_HALTED}"),
    Metric("train/decoder_lr", "1/step", "none", "learning rate of the decoder"),
    Metric("train/lr", "1/step", "none", "the same, under the name of the experiment guide"),
    Metric("train/encoder_lr", "1/step", "none", "learning rate of the encoder or puzzle table"),
    Metric("train/count", "rows", "none", "labelled rows that halted since the last log"),
    Metric("train/decoder_frozen", "0 or 1", "none", "1 while the decoder stands still"),
    Metric("train/encoder_frozen", "0 or 1", "none", "1 while the encoder or puzzle table stands still"),
    Metric(
        "train/encoder_cross_sample_var", "variance", "up", "variance of context tokens across the rows of a batch", (0.3, _INF)
    ),
    Metric("train/encoder_output_mean", "", "none", "mean of all context values"),
    Metric("train/encoder_output_std", "", "none", "standard deviation of all context values"),
    Metric("train/encoder_output_norm", "", "none", "mean L2 norm of a context token"),
    Metric("train/encoder_token_std", "", "none", "standard deviation across the tokens of a row, averaged"),
    Metric(
        "grad/encoder_norm",
        "L2",
        "none",
        "gradient norm of the encoder, after the sum over ranks, before clipping",
        (0.2, _INF),
    ),
    Metric(
        "grad/adapter_norm", "L2", "none", "gradient norm of the context adapter, which a starved encoder cannot hide behind"
    ),
    Metric("grad/decoder_norm", "L2", "none", "gradient norm of the decoder, measured at the same place"),
    Metric("grad/inner_norm", "L2", "none", "the same, under the name of the experiment guide"),
    Metric("grad/puzzle_norm", "L2", "none", "gradient norm of the looked-up puzzle rows"),
    Metric(
        "grad/total_norm", "L2", "none", "gradient norm of encoder, adapter and decoder (of those that train), before clipping"
    ),
    Metric("grad/clip_factor", "share", "none", "what gradients were multiplied by in clipping; 1 is no clipping"),
    Metric("all.accuracy", "share", "up", f"labelled cells predicted right, {_ALL}"),
    Metric("all.exact_accuracy", "share", "up", f"grids predicted exactly right, {_ALL}"),
    Metric("all.lm_loss", "nats", "down", f"stablemax cross-entropy per cell, {_ALL}"),
    Metric("all.q_halt_accuracy", "share", "up", f"halt logit agrees with exactness, {_ALL}", (0.8, 1)),
    Metric("all.q_halt_loss", "nats", "down", f"binary cross-entropy of the halt logit, {_ALL}"),
    Metric("all.steps", "steps", "none", f"supervision steps, {_ALL}; always the maximum with evaluation.halting=all_steps"),
    Metric("all.count", "grids", "none", "augmented copies of test inputs that were predicted"),
    Metric(
        "all.labelled",
        "grids",
        "none",
        "those of them whose answer is known (with adaptive votes, of each task's first round): the N of the other all. shares",
    ),
    *[
        Metric(
            f"ARC/pass@{k}",
            "share",
            "up",
            f"mean over tasks of the share of test inputs with the right grid among the first {k} by votes",
        )
        for k in PASS_KS
    ],
    *[Metric(f"ARC/solved@{k}", "share", "up", f"tasks with every test input right within {k} attempts") for k in SOLVED_KS],
    Metric("ARC/new_colors_pass@1", "share", "up", f"ARC/pass@1 over test inputs whose answers have {_NEW_COLORS}"),
    Metric("ARC/new_colors_tasks", "tasks", "none", "tasks with such test inputs: the N of that share"),
    Metric("ARC/tasks", "tasks", "none", "tasks scored: the N of every ARC/ share"),
    Metric(
        "eval/rows_share", "share", "none", "augmented test inputs that were predicted, of all; below 1 with adaptive votes"
    ),
    Metric(
        "eval/second_pass_share",
        "share",
        "none",
        "predictions made again for evaluation.ranking=product, of all that were counted",
    ),
    Metric("eval/rerun_share", "share", "none", "predictions made again on a larger canvas, of all that were counted"),
    Metric("ARC/undecodable", "share", "down", "predictions that show no grid; they count as wrong"),
    *[
        Metric(f"{prefix}/{name}", unit, direction, f"{where}: {meaning}")
        for prefix, where in (("encoder", "scored tasks"), ("train_encoder", "training tasks"))
        for name, (unit, direction, meaning) in ENCODER.items()
    ],
    *[
        Metric(
            f"programs/pass@{k}",
            "share",
            "up",
            f"chance that one of {k} programs is right on all test inputs, unbiased, mean over tasks",
        )
        for k in PASS_KS
    ],
    *[Metric(f"programs/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in _PROGRAMS.items()],
    *[Metric(f"tree/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in _TREE.items()],
    *[Metric(f"reward/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in _REWARD.items()],
    *[Metric(f"learned/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in _LEARNED.items()],
    *[
        Metric(f"edits/pass@{k}", "share", "up", f"chance that one of {k} edits of a start program is right, of its first turn")
        for k in PASS_KS
    ],
    *[Metric(f"edits/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in EDITS.items()],
    *[Metric(f"knowledge/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in KNOWLEDGE.items()],
    *[Metric(f"ttt/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in TEST_TIME.items()],
    *[Metric(f"seal/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in SEAL.items()],
    *[Metric(f"ensemble/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in _ENSEMBLE.items()],
    *[Metric(f"puzzle/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in PUZZLE.items()],
    *[Metric(f"text/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in _TEXT.items()],
    *[
        Metric(f"adapt/{name}", unit, direction, f"{meaning}; mean over predictions")
        for name, (unit, direction, meaning) in ADAPT.items()
    ],
    *[Metric(f"search/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in _SEARCH.items()],
    *[Metric(f"adapted/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in _ADAPTED.items()],
    *[Metric(f"ltpo/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in _LTPO.items()],
    *[Metric(f"rl/{name}", unit, direction, meaning) for name, (unit, direction, meaning) in _RL.items()],
    Metric("timing/rollouts_per_s", "rollouts/s", "up", "rollouts drawn and scored per second, all ranks"),
    Metric("timing/rollout_share", "share", "down", "time since the last log in which rollouts were drawn and scored"),
    Metric("timing/eval_share", "share", "down", "time since the last log in which held-out tasks were scored"),
    Metric("train/token_accuracy", "share", "up", "tokens of replies that are the likeliest ones where they stand"),
    Metric("train/token_entropy", "nats", "none", "entropy of the next token over the tokens of replies"),
    Metric("timing/train_samples_per_s", "rows/s", "up", "rows trained per second, all ranks, since the last log"),
    Metric(
        "timing/replies_per_s", "replies/s", "up", "replies drawn and executed per second, those kept from earlier left out"
    ),
    Metric("timing/nodes_per_s", "draws/s", "up", "steps or programs drawn and executed per second by a tree search"),
    Metric("timing/tokens_per_s", "tokens/s", "up", "tokens generated per second of a tree search, execution included"),
    Metric("timing/sandbox_wait_share", "share", "down", "time in which the model waited for programs that were running"),
    Metric("timing/search_s", "s", "down", "searching the context of one augmented copy of a task"),
    Metric(
        "timing/solve_s",
        "s",
        "down",
        "seconds of answering all tasks, ranks and earlier starts added; missing where replies were kept from an earlier start",
    ),
    Metric("timing/eval_samples_per_s", "rows/s", "up", "augmented test inputs predicted per second, all ranks"),
    Metric("context_gain", "", "none", "what context tokens are multiplied by when training starts"),
    Metric("num_train_tasks", "tasks", "none", "tasks that are trained on"),
    Metric("num_params", "parameters", "none", "parameters of the network, puzzle table left out"),
    Metric("num_puzzle_params", "parameters", "none", "values in the puzzle table"),
]
REGISTRY: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
# Row fields that say where a row belongs; eval_predictions and train_predictions are W&B tables, not numbers.
ROW_FIELDS = ("_step", "_runtime", "_timestamp")
# Text beside the numbers of a row, at the steps where health is judged: the kind of the verdict, how grave, the sentence.
TEXT_FIELDS = ("health", "health_level", "health_note")
TABLES = ("train_predictions", "eval_predictions")
# What a share is counted over, by the beginning of its name; all.count only in runs from before all.labelled was measured.
_COUNTS = {
    "all.": ("all.labelled", "all.count"),
    "ARC/new_colors": ("ARC/new_colors_tasks",),
    "ARC/": ("ARC/tasks",),
    "train/new_colors": ("train/new_colors_count",),
    "train/": ("train/count",),
    "text/memory_wins": ("text/discordant",),
    "text/": ("text/count",),
    "ensemble/oracle_coverage": ("ensemble/test_inputs",),
    "learned/wins": ("learned/discordant",),
    "learned/": ("ARC/tasks",),
    "adapted/wins": ("adapted/discordant",),
    "knowledge/wins": ("knowledge/discordant",),
    "knowledge/": ("knowledge/questions",),
    "edits/solved_share": ("edits/starts",),
    "edits/tests_solved_share": ("edits/starts",),
    "edits/wins": ("edits/discordant",),
    "edits/cell_share": ("edits/starts",),
    "edits/steep_cell_share": ("edits/starts",),
    "edits/pass@": ("edits/starts",),
    "edits/coverage": ("edits/tasks",),
    "edits/two_attempts": ("edits/tasks",),
    "edits/": ("edits/count",),
    "seal/wins": ("seal/discordant",),
    "seal/successful_share": ("seal/proposals",),
    "seal/": ("ARC/tasks",),
}
COUNTS = frozenset(name for names in _COUNTS.values() for name in names)


def count_of(metric: str, row: Mapping[str, Any]) -> int | None:
    """The N of a share in a row of metrics; None if the row does not say, or it is 0."""
    names = next((names for prefix, names in _COUNTS.items() if metric.startswith(prefix)), ())
    return next((int(row[name]) for name in names if row.get(name) is not None), None) or None


def is_counted_share(metric: str) -> bool:
    """A share of rows, copies or tasks of which more is better: what a criterion can ask for, and what an interval is given
    for."""
    entry = REGISTRY.get(metric)
    return (
        entry is not None
        and entry.unit == "share"
        and entry.direction == "up"
        and metric.startswith(("train/", "all.", "ARC/", "text/", "edits/", "learned/", "knowledge/", "seal/"))
    )
