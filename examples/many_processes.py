"""Training with many processes: the loss is that of the whole batch, whatever the number of processes.

    torchrun --nproc-per-node 2 examples/many_processes.py
    python examples/many_processes.py

Each process makes its share of the generated and real rows. gkfast.distributed.mmd2 takes the pairs of its own rows
against everybody's, and gradients are averaged over processes. Both commands print the same losses, to rounding.
"""

import argparse
import os

import torch
import torch.distributed as dist

import gkfast.distributed


def train(steps, batch, rank=0, processes=1):
    """The losses of the global batch."""
    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Tanh(), torch.nn.Linear(32, 2)).double()
    optimizer = torch.optim.SGD(generator.parameters(), lr=0.5)
    rng = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(steps):
        # all rows on all processes by one seed, so that runs can be compared; a real loader gives each its share
        noise, real = (torch.randn(batch, d, generator=rng).double() for d in (4, 2))
        mine = slice(rank, None, processes)
        real = real + 2
        loss = gkfast.distributed.mmd2(generator(noise[mine]), real[mine], [0.5, 1.0, 2.0])
        optimizer.zero_grad()
        loss.backward()
        if processes > 1:
            for parameter in generator.parameters():
                # gradients are of the sum of what all processes compute
                dist.all_reduce(parameter.grad)
                parameter.grad /= processes
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=512)
    options = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
        rank, processes = dist.get_rank(), dist.get_world_size()
    else:
        rank, processes = 0, 1
    losses = train(options.steps, options.batch, rank, processes)
    if rank == 0:
        print(f"{processes} process{'es' * (processes > 1)}")
        print("step     loss")
        for step in sorted({0, len(losses) // 4, len(losses) // 2, len(losses) - 1}):
            print(f"{step:4} {losses[step]:12.8f}")
    if processes > 1:
        dist.destroy_process_group()
