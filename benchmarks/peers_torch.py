"""The sides of `peers.py` that need PyTorch, which is imported only where a side is built."""

import numpy as np
from training import LEARNING_RATE, shuffled


class Torch:
    """Eager steps on rows of tensors in memory; `step` takes a batch and gives the bound per unit."""

    def __init__(self, step, data, batch):
        import torch

        self.step, self.batch, self.size = step, batch, len(next(iter(data.values())))
        self.data = {name: torch.from_numpy(x) for name, x in data.items()}
        self.rows = shuffled(self.size, batch)

    def run(self):
        import torch

        block = torch.from_numpy(np.array(next(self.rows), np.int64))
        bounds = [self.step({name: x[rows] for name, x in self.data.items()}) for rows in block]
        return float(np.mean([float(bound) for bound in bounds]))


def torch_networks(name, data):
    """(modules of the guide by name, statistics of the inputs by argument)."""
    import torch
    from torch import nn

    center = {n: torch.from_numpy(np.asarray(x.mean(0), np.float32)) for n, x in data.items()}
    scale = {n: torch.from_numpy(np.asarray(np.maximum(x.std(0), 0.05), np.float32)) for n, x in data.items()}
    if name == "VAE":
        parts = {
            "encoder": nn.Sequential(nn.Linear(784, 400), nn.SiLU(), nn.Linear(400, 40)),
            "decoder": nn.Sequential(nn.Linear(20, 400), nn.SiLU(), nn.Linear(400, 784)),
        }
    else:
        parts = {
            "encoder": nn.Sequential(nn.Linear(20, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU()),
            "head": nn.Sequential(nn.Linear(64 + 20 + 14, 64), nn.SiLU(), nn.Linear(64, 6)),
        }
    nets = nn.ModuleDict(parts)
    if name != "VAE":
        nets.register_parameter("shared", nn.Parameter(torch.cat([torch.zeros(7), torch.full((7,), -1.2)])))
    return nets, center, scale


def torch_side(name, data, batch):
    """PyTorch by hand."""
    import torch
    from torch.distributions import Normal

    size, (nets, center, scale) = len(next(iter(data.values()))), torch_networks(name, data)
    optimizer = torch.optim.Adam(nets.parameters(), LEARNING_RATE, betas=(0.9, 0.99), fused=True)

    def vae(rows):
        x = rows["image"]
        m, log_s = nets["encoder"]((x - center["image"]) / scale["image"]).chunk(2, 1)
        q = Normal(m, log_s.exp())
        z = q.rsample()
        logits = nets["decoder"](z)
        log_p = Normal(0.0, 1.0).log_prob(z).sum(1) - torch.nn.functional.binary_cross_entropy_with_logits(
            logits, x, reduction="none"
        ).sum(1)
        return (log_p - q.log_prob(z).sum(1)).mean()

    def hierarchical(rows):
        mean, log_sd = nets.shared.chunk(2)
        q_shared = Normal(mean, log_sd.exp())
        free = q_shared.rsample()
        q = torch_locals(nets, center, scale, rows, free, mean, log_sd)
        z, x = q.rsample(), rows["x"]
        predicted = z[:, :1] + z[:, 1:2] * x + z[:, 2:] * x**2
        log_p = Normal(2 * free[:3], free[3:6].exp()).log_prob(z).sum(1)
        log_p = log_p + Normal(predicted, free[6].exp()).log_prob(rows["y"]).sum(1)
        shared = (Normal(0.0, 1.0).log_prob(free) - q_shared.log_prob(free)).sum()
        return (log_p - q.log_prob(z).sum(1)).mean() + shared / size

    bound_of = vae if name == "VAE" else hierarchical

    def step(rows):
        optimizer.zero_grad(set_to_none=True)
        bound = bound_of(rows)
        (-bound).backward()
        torch.nn.utils.clip_grad_norm_(nets.parameters(), 10.0)
        optimizer.step()
        return bound.detach()

    return Torch(step, data, batch)


def torch_locals(nets, center, scale, rows, free, mean, log_sd):
    """q(z | x, y, globals)."""
    import torch
    from torch.distributions import Normal

    plain = torch.cat([(rows[n] - center[n]) / scale[n] for n in ("x", "y")], 1)
    told = torch.cat([free, (free - mean) / log_sd.exp()]).expand(len(plain), 14)
    m, log_s = nets["head"](torch.cat([nets["encoder"](plain), plain, told], 1)).chunk(2, 1)
    return Normal(m, log_s.exp())


def pyro_side(name, data, batch):
    import pyro
    import pyro.distributions as pd
    import torch

    pyro.clear_param_store()
    size, (nets, center, scale) = len(next(iter(data.values()))), torch_networks(name, data)
    thinned = pyro.poutine.scale(scale=size / batch)

    def vae_model(image):
        pyro.module("nets", nets)
        with pyro.plate("image", len(image)), thinned:
            z = pyro.sample("z", pd.Normal(torch.zeros(len(image), 20), 1.0).to_event(1))
            pyro.sample("pixels", pd.Bernoulli(logits=nets["decoder"](z)).to_event(1), obs=image)

    def vae_guide(image):
        m, log_s = nets["encoder"]((image - center["image"]) / scale["image"]).chunk(2, 1)
        with pyro.plate("image", len(image)), thinned:
            pyro.sample("z", pd.Normal(m, log_s.exp()).to_event(1))

    def groups_model(x, y):
        pyro.module("nets", nets)
        free = pyro.sample("free", pd.Normal(torch.zeros(7), 1.0).to_event(1))
        with pyro.plate("group", len(x)), thinned:
            z = pyro.sample("z", pd.Normal(2 * free[:3], free[3:6].exp()).to_event(1))
            predicted = z[:, :1] + z[:, 1:2] * x + z[:, 2:] * x**2
            pyro.sample("y", pd.Normal(predicted, free[6].exp()).to_event(1), obs=y)

    def groups_guide(x, y):
        mean, log_sd = nets.shared.chunk(2)
        free = pyro.sample("free", pd.Normal(mean, log_sd.exp()).to_event(1))
        q = torch_locals(nets, center, scale, {"x": x, "y": y}, free, mean, log_sd)
        with pyro.plate("group", len(x)), thinned:
            pyro.sample("z", pd.Normal(q.loc, q.scale).to_event(1))

    pair = (vae_model, vae_guide) if name == "VAE" else (groups_model, groups_guide)
    optimizer = pyro.optim.ClippedAdam({"lr": LEARNING_RATE, "betas": (0.9, 0.99)})
    svi = pyro.infer.SVI(*pair, optimizer, pyro.infer.Trace_ELBO())
    return Torch(lambda rows: -svi.step(**rows) / size, data, batch)
