"""How fast are flows as q(z | x)? Draws with their density, and the gradient of both: ours, FlowJAX, zuko, in one run.

Dimension 8, a context of 32 numbers for every one of 4,096 draws, 8 layers, networks of one hidden layer of 50. Compile
times are apart; a rate is the best of several calls, so that a busy machine disturbs less. Peers that are not installed
are left out; they belong in an environment of their own (`pip install flowjax`, `pip install torch zuko`), with this
repository's `src` on PYTHONPATH.

    python benchmarks/flows.py [--repeats 10] [--only coupling]
"""

import argparse
import time

import equinox as eqx
import jax
import jax.numpy as jnp

import amortax as am

SIZE, CONTEXT, LAYERS, DRAWS, WIDTH, BINS = 8, 32, 8, 4096, 50, 8


def ours():
    networks = {"width": WIDTH, "depth": 1}
    spline = am.spline(BINS)
    recipes = {
        "affine coupling": am.coupling(LAYERS, **networks),
        "spline coupling": am.coupling(LAYERS, spline, **networks),
        "IAF": am.iaf(LAYERS, **networks),
        "spline IAF": am.iaf(LAYERS, spline, **networks),
        "MAF": am.maf(LAYERS, **networks),
        "planar": am.planar(LAYERS, **networks),
        "mixture of 4 full": am.mixture(am.full(**networks), 4, **networks),
    }

    def draw(family, noise, context):
        return jax.vmap(lambda e, c: family.sample_and_log_prob(e, 0, (c,)))(noise, context)

    for name, recipe in recipes.items():

        def build(recipe=recipe):
            return eqx.filter_jit(lambda key: recipe.build(SIZE, (CONTEXT,), key=key))(jax.random.key(0))

        yield f"amortax {name}", build, draw


def flowjax():
    try:
        from flowjax.bijections import Affine, RationalQuadraticSpline
        from flowjax.distributions import Normal
        from flowjax.flows import coupling_flow, masked_autoregressive_flow
    except ImportError:
        return
    spline = RationalQuadraticSpline(knots=BINS, interval=5)
    networks = {"cond_dim": CONTEXT, "flow_layers": LAYERS, "nn_width": WIDTH, "nn_depth": 1}
    flows = {
        "affine coupling": (coupling_flow, {"transformer": Affine()}),
        "spline coupling": (coupling_flow, {"transformer": spline}),
        "IAF": (masked_autoregressive_flow, {"transformer": Affine(), "invert": False}),
        "spline IAF": (masked_autoregressive_flow, {"transformer": spline, "invert": False}),
        "MAF": (masked_autoregressive_flow, {"transformer": Affine(), "invert": True}),
    }

    def draw(flow, noise, context):
        def one(start, given):
            value, log_det = flow.bijection.transform_and_log_det(start, given)
            return value, flow.base_dist.log_prob(start) - log_det

        return jax.vmap(one)(noise, context)

    for name, (make, options) in flows.items():

        def build(make=make, options=options):
            # not under one jit, as ours: version 19.1 keeps a traced array and fails
            return make(jax.random.key(0), base_dist=Normal(jnp.zeros(SIZE)), **networks, **options)

        yield f"FlowJAX {name}", build, draw


def measure(name, build, draw, repeats):
    start = time.perf_counter()
    family = jax.block_until_ready(build())
    built = time.perf_counter() - start
    noise, context = (jax.random.normal(jax.random.key(i), (DRAWS, n)) for i, n in enumerate((SIZE, CONTEXT)))
    params, rest = eqx.partition(family, eqx.is_inexact_array)
    rest, static = eqx.partition(rest, eqx.is_array)

    def sample(params, rest, noise, context):
        return draw(eqx.combine(params, rest, static), noise, context)

    def loss(*given):
        value, log_prob = sample(*given)
        return jnp.mean(log_prob + 0.5 * jnp.sum(value**2, axis=1))

    numbers, given = [], (params, rest, noise, context)
    for call in (sample, jax.grad(loss)):
        compiled = jax.jit(call)
        start = time.perf_counter()
        jax.block_until_ready(compiled(*given))
        first = time.perf_counter() - start
        seconds = best_of(lambda f=compiled: jax.block_until_ready(f(*given)), repeats)
        numbers.append((seconds, first - seconds))
    show(name, [DRAWS / seconds / 1e3 for seconds, _ in numbers], built, [c for _, c in numbers])


def zuko(repeats, only):
    try:
        import torch
        import zuko
    except ImportError:
        return
    options = {"transforms": LAYERS, "hidden_features": (WIDTH,)}
    flows = {
        "affine coupling": lambda: zuko.flows.RealNVP(SIZE, CONTEXT, **options),
        "spline coupling": lambda: zuko.flows.NSF(SIZE, CONTEXT, bins=BINS, passes=2, **options),
        "MAF": lambda: zuko.flows.MAF(SIZE, CONTEXT, **options),
    }
    context = torch.randn(DRAWS, CONTEXT)
    for name, make in flows.items():
        if only not in name:
            continue
        start = time.perf_counter()
        flow = make()
        built = time.perf_counter() - start

        def sample(flow=flow):
            with torch.no_grad():
                return flow(context).rsample_and_log_prob()

        def gradient(flow=flow):
            flow.zero_grad()
            value, log_prob = flow(context).rsample_and_log_prob()
            torch.mean(log_prob + 0.5 * torch.sum(value**2, dim=1)).backward()

        rates = [DRAWS / best_of(call, repeats) / 1e3 for call in (sample, gradient)]
        show(f"zuko {name}", rates, built, [0.0, 0.0])


def best_of(call, repeats):
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def show(name, rates, built, compiled):
    print(
        f"| {name:26} | {rates[0]:9,.0f} | {rates[1]:9,.0f} | {built:6.1f} | {compiled[0]:5.1f} + {compiled[1]:4.1f} |",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", default="", help="part of a name")
    options = parser.parse_args()
    print(
        f"dim {SIZE}, context {CONTEXT}, {LAYERS} layers of width {WIDTH}, {DRAWS:,} draws; thousand draws per second"
    )
    print("| code | draw + density | its gradient | build s | compile s |\n|---|--:|--:|--:|--:|")
    for name, build, draw in (*ours(), *flowjax()):
        if options.only in name:
            measure(name, build, draw, options.repeats)
    zuko(options.repeats, options.only)


if __name__ == "__main__":
    main()
