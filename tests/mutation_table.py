"""The classic bugs of this field (TRUST): where each is planted, and the tests that must then fail."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """A bug: `old` becomes `new` in `file`, and the `tests` (files, then words for -k) must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    words: str = ""


MASKS, BASE, TYPES = "joint/masks.py", "objectives/base.py", "_types.py"
SCALING, NOISE, ENCODERS = "statistical/test_scaling.py", "statistical/test_noise.py", "contracts/test_encoders.py"
JACOBIAN = "return log_prob + jacobian"
SCALE = "return self.num_units / sum(batch_size(batch) for batch in self.groups)"
TOTAL = "return self.shared + scale * jnp.sum(self.unit)"
POOL = "share = weight / jnp.maximum(jnp.sum(weight), 1.0)\n        value"
WEIGHTS = "return power_mean(log_weight, jnp.full(log_weight.shape, -jnp.log(count)), alpha), log_prior"
SUMMED = "jnp.broadcast_to(jnp.mean(log_weight, axis=1, keepdims=True), log_weight.shape)"

MUTATIONS = (
    Mutation(
        "missing Jacobian", MASKS, JACOBIAN, "return log_prob", "exact/test_joint_supports.py", "integrates_to_one"
    ),
    Mutation(
        "double Jacobian",
        MASKS,
        JACOBIAN,
        JACOBIAN.replace("+ ", "+ 2 * "),
        "exact/test_joint_supports.py",
        "integrates_to_one",
    ),
    Mutation("no N/B", BASE, SCALE, "return self.num_units / self.num_units", SCALING),
    Mutation("N/B twice", BASE, SCALE, SCALE.replace("return ", "return 2 * "), SCALING),
    Mutation("N/B in whole numbers", BASE, SCALE, SCALE.replace(" / ", " // "), SCALING),
    Mutation("N/B on the globals too", TYPES, TOTAL, "return scale * (self.shared + jnp.sum(self.unit))", SCALING),
    Mutation("a global counted per unit", TYPES, TOTAL, "return scale * jnp.sum(self.shared + self.unit)", SCALING),
    Mutation(
        "event dimensions averaged",
        "joint/joint.py",
        "total = jnp.sum(log_probs[site.name])",
        "total = jnp.mean(log_probs[site.name])",
        "exact/test_joint_density.py",
        "closed_form",
    ),
    Mutation(
        "(B,) against (B, 1)",
        "objectives/estimators.py",
        "return Draws(local, log_q, log_p - log_q,",
        "return Draws(local, log_q, jnp.sum(log_p[:, :, None] - log_q[:, None, :], axis=1),",
        SCALING,
    ),
    Mutation(
        "weighed globals seen once through the draws",
        "objectives/weighted.py",
        "shared = _scaled(shared, alpha + (1.0 - alpha) * weight)",
        "shared = shared + 0.0 * weight",
        "exact/test_weighed_globals.py",
        "exact_bound",
    ),
    Mutation(
        "weights of units without those of the globals",
        "objectives/weighted.py",
        "power = outer * jax.nn.softmax",
        "power = 1.0 * jax.nn.softmax",
        "exact/test_weighed_globals.py",
        "less_noise",
    ),
    Mutation(
        "weights summed over units",
        "objectives/weighted.py",
        WEIGHTS,
        WEIGHTS.replace("mean(log_weight,", f"mean({SUMMED},"),
        "exact/test_bounds.py",
    ),
    Mutation(
        "IWAE without log K",
        "objectives/weighted.py",
        WEIGHTS,
        WEIGHTS.replace("-jnp.log(count)), alpha)", "-jnp.log(count)), alpha) + jnp.log(count)"),
        "exact/test_bounds.py",
    ),
    Mutation(
        "path derivative that stops the draws",
        "objectives/estimators.py",
        "seen_through_draws(still_guide, still_joint, batch, still_context, local, shared)",
        "seen_through_draws(guide, joint, batch, context, stopped(local), stopped(shared))",
        "exact/test_estimators.py",
    ),
    Mutation(
        "DReG on the decoder too",
        "objectives/weighted.py",
        "return log_p.unit - share * seen",
        "return _scaled(log_p.unit[:, None], factor)[:, 0] - share * seen",
        "exact/test_bounds.py",
    ),
    Mutation(
        "an annealed weight in the reported bound",
        "objectives/elbo.py",
        "return Loss(-value, jax.lax.stop_gradient(elbo))",
        "return Loss(-value, jax.lax.stop_gradient(value))",
        "exact/test_reweighted_elbo.py",
    ),
    Mutation(
        "KL the wrong way",
        "objectives/elbo.py",
        "draws.log_q - log_prior)",
        "log_prior - draws.log_q)",
        "exact/test_reweighted_elbo.py",
    ),
    Mutation(
        "batch statistics",
        "joint/refuse.py",
        'if site.kind == "mutable":',
        'if site.kind == "never":',
        "joint/test_refusals.py",
        "stateful",
    ),
    Mutation(
        "one key for all steps",
        "train/step.py",
        "return State(params, optimizer, key, state.step + 1)",
        "return State(params, optimizer, state.key, state.step + 1)",
        NOISE,
    ),
    Mutation(
        "one key for all units",
        "objectives/estimators.py",
        "noise = guide.local_noise(key, joint, batch, batch_size(batch))",
        "noise = jnp.repeat(guide.local_noise(key, joint, batch, 1), batch_size(batch), axis=0)",
        NOISE,
    ),
    Mutation(
        "one key for globals and locals",
        "objectives/estimators.py",
        "shared_key, local_key = jax.random.split(key)\n\n    def place",
        "shared_key = local_key = key\n\n    def place",
        NOISE,
    ),
    Mutation(
        "one key for all units of an answer",
        "answer.py",
        "jax.random.fold_in(jax.random.fold_in(key, index), draw)",
        "jax.random.fold_in(key, draw)",
        NOISE,
    ),
    Mutation(
        "sign of a log determinant",
        "families/flow.py",
        "return value, self.base.log_prob(start) - log_det - log_scale",
        "return value, self.base.log_prob(start) + log_det - log_scale",
        "contracts/test_families.py",
        "log_determinant",
    ),
    Mutation(
        "IAF and MAF swapped",
        "families/autoregressive.py",
        "image, log_det = self.network.at_once(value, context)\n        return image[::-1], log_det",
        "image, log_det = self.network.one_by_one(value, context)\n        return image[::-1], -log_det",
        "exact/test_flow_layers.py",
        "passes_of_the_paper",
    ),
    Mutation("padding in a pool", "encoders/pools.py", POOL, "share = weight / weight.size\n        value", ENCODERS),
    Mutation(
        "padding in attention",
        "encoders/pools.py",
        "jnp.where(present[None] > 0, scores, -jnp.inf)",
        "jnp.where(present[None] > 0, scores, scores)",
        ENCODERS,
    ),
    Mutation(
        "padding among elements that have elements",
        "encoders/nested.py",
        "return jnp.max(jnp.stack(below), axis=0)",
        "return jnp.ones(rows.shape[:-1])",
        "exact/test_nested.py",
        "padded_to",
    ),
    Mutation(
        "a draw of elements that does not follow what stands above them",
        "tree_frame.py",
        "moved = _over(_solve_transposed, factor, noise) - self._told(number, found)",
        "moved = _over(_solve_transposed, factor, noise)",
        "exact/test_nested.py",
        "whole_matrix",
    ),
    Mutation(
        "a series whose steps are told the one before with the wrong sign",
        "families/markov.py",
        "own = away - jnp.sum(carry",
        "own = away + jnp.sum(carry",
        "contracts/test_families.py",
        "density_under_the_whole_family",
    ),
    Mutation(
        "padding in the likelihood",
        MASKS,
        "return jnp.where(whole, log_prob, 0.0)",
        "return log_prob",
        "joint/test_masks.py",
    ),
    Mutation(
        "k-hat of weights that are not normalised",
        "psis.py",
        "jax.lax.top_k(log_weights - largest,",
        "jax.lax.top_k(log_weights,",
        "exact/test_psis.py",
    ),
    Mutation(
        "underflow of weights",
        "psis.py",
        "weights = jnp.exp(log_weights - jnp.max(log_weights))",
        "weights = jnp.exp(log_weights)",
        "exact/test_psis.py",
        "effective",
    ),
    Mutation(
        "codes above 2^24 in float32",
        "encoders/base.py",
        '(_less(value, known["center"]) / known["scale"])',
        '((number - known["center"]) / known["scale"])',
        "joint/test_hidden_mixing.py",
        "large_codes",
    ),
    Mutation(
        "answers in unconstrained space",
        "joint/joint.py",
        "return {site.name: site.keep(records[site.name].value) for site in sites}",
        "return {s.name: s.keep(records[s.name].to_free() if s.role in ('local', 'global') else records[s.name].value)"
        " for s in sites}",
        "exact/test_posterior_draws.py",
    ),
    Mutation(
        "an encoder without gradient",
        "guide.py",
        "jax.vmap(self.encoder)(batch)",
        "jax.lax.stop_gradient(jax.vmap(self.encoder)(batch))",
        "contracts/test_guide.py",
    ),
    Mutation(
        "early stopping on the training bound",
        "train/run.py",
        "judged = seen.held_out[-1] if _chooses(setting) else judged",
        "judged = judged if _chooses(setting) else judged",
        "reliability/test_training_data.py",
        "best_parameters",
    ),
    Mutation(
        "held-out units in the standardisation",
        "fitting.py",
        "initialise(plan, to_batch(training), init_key)",
        "initialise(plan, to_batch(found), init_key)",
        "reliability/test_training_data.py",
        "standardisation",
    ),
    Mutation(
        "doubled data that do not shrink the globals",
        "train/run.py",
        "jnp.asarray(float(size))",
        "jnp.asarray(100.0)",
        "exact/test_hierarchy.py",
        "root_two",
    ),
    Mutation(
        "a draw in its own baseline",
        "objectives/score.py",
        "others = (jnp.sum(each, axis=0) - each) / (count - 1)",
        "others = jnp.broadcast_to(jnp.mean(each, axis=0), each.shape)",
        "exact/test_score.py",
        "all_assignments",
    ),
    Mutation(
        "VIMCO without the score in its weights",
        "objectives/score.py",
        "(gain - excess) * by_parameters",
        "gain * by_parameters",
        "exact/test_score.py",
        "near_the_posterior",
    ),
    Mutation(
        "log q of a choice forgotten",
        "guide.py",
        "log_q + log_choice",
        "log_q",
        "exact/test_drawn_choices.py",
        "of_one_q",
    ),
    Mutation(
        "labels of another shape than the site's",
        "joint/structure.py",
        "return jnp.squeeze(value, tuple(axis for axis in self.added if -jnp.ndim(value) <= axis))",
        "return value",
        "exact/test_labels_missing_later.py",
        "lack_the_axes",
    ),
    Mutation(
        "labels missing later are what fills them",
        "joint/joint.py",
        "return (label == value) | ~mask",
        "return label == value",
        "exact/test_labels_missing_later.py",
        "planned_so",
    ),
    Mutation(
        "evidence without log K",
        "importance.py",
        "evidence = jax.nn.logsumexp(log_weight) - jnp.log(count)",
        "evidence = jax.nn.logsumexp(log_weight)",
        "exact/test_evidence.py",
        "gaussian",
    ),
    Mutation(
        "pixels each on a scale of its own",
        "encoders/base.py",
        "axes = (0, 1, 2) if feature.image else axes",
        "axes = (0,) if feature.image else axes",
        ENCODERS,
        "formula",
    ),
    Mutation(
        "a block without its residual",
        "encoders/image.py",
        "return image + second(silu(first(silu(image))))",
        "return second(silu(first(silu(image))))",
        ENCODERS,
        "formula",
    ),
    Mutation(
        "a single unit read alone",
        "plan.py",
        "np.concatenate([x, x])",
        "np.concatenate([x])",
        "exact/test_one_unit.py",
        "hide",
    ),
    Mutation(
        "networks of a flow as fast as free numbers",
        "train/schedule.py",
        "not isinstance(x, Linear)",
        "True",
        "statistical/test_flow_globals.py",
        "networks_of_a_flow",
    ),
    Mutation(
        "wide layers as fast as narrow ones",
        "train/schedule.py",
        "optax.chain(optax.scale_by_adam(b1=0.9, b2=0.99), _by_width())",
        "optax.scale_by_adam(b1=0.9, b2=0.99)",
        "exact/test_step_sizes.py",
        "root",
    ),
    Mutation(
        "splines of q(v) as fast as other networks",
        "families/spline.py",
        "pace: ClassVar[float] = 0.2",
        "pace: ClassVar[float] = 1.0",
        "exact/test_step_sizes.py",
        "fifth",
    ),
    Mutation(
        "natural step on another scale than q's",
        "train/natural.py",
        "num_units * slopes * scale",
        "num_units * slopes",
        "exact/test_natural.py",
        "one_step_is_the_exact_normal",
    ),
    Mutation(
        "Fisher matrix of a Dirichlet without its total",
        "families/dirichlet.py",
        "rest * (whole - mean_x * own)",
        "rest * (0.0 * whole - mean_x * own)",
        "contracts/test_natural_families.py",
        "short_step",
    ),
    Mutation(
        "a series read backward from its padding",
        "encoders/sequence.py",
        "state = jnp.where(is_own, cell(row, state), state)",
        "state = cell(row, state)",
        "contracts/test_encoders.py",
        "padding_changes_nothing",
    ),
    Mutation(
        "steps heard from beyond the end",
        "encoders/sequence.py",
        "jnp.where(own[:, None], silu(heard), 0.0)",
        "silu(heard)",
        "contracts/test_encoders.py",
        "padding_changes_nothing",
    ),
)
