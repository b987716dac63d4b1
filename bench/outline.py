"""What `purifybench run --estimate` says: the cells of a plan and what they cost, without training anything."""

from __future__ import annotations

from bench import attack_cost
from bench.defense import has_door
from bench.planning import Plan
from bench.record import Store
from bench.work import doors


def outline(asked: Plan, store: Store) -> list[str]:
    """What a plan would do, without training anything: its cells, and the rows that its attacks cost at most.

    A defense's budget class is measured when it is run; here all are taken for cheap.
    """
    lines = [
        f"{asked.protocol.id}: {asked.protocol.n_examples} images of {asked.protocol.dataset} on {asked.device.type}"
    ]
    stored = {(cell.record.defense, cell.record.cell) for cell in store.cells(asked.protocol.id)}
    usual = [spec for spec in asked.protocol.among(asked.tracks, asked.attacks) if spec.is_shared]
    for classifier in asked.classifiers:
        forward, backward = attack_cost.rows(usual, asked.protocol)
        lines.append(
            f"classifier {classifier}: attacks cost {forward:,} forward, {backward:,} backward rows, once for all"
            f"{attack_cost.labels_asked(usual)}"
        )
        for name, cls in asked.defenses:
            view = asked.protocol.effort("cheap", stochastic=cls.stochastic, doors=doors(cls, asked.protocol))
            specs = view.among(asked.tracks, asked.attacks)
            trainings = asked.seeds if has_door(cls, "fit") else 1
            names = [spec.cell(classifier, seed) for seed in range(trainings) for spec in specs]
            done = sum((name, cell) in stored for cell in names)
            passes = (len(names) - done) * view.n_examples * view.looks(stochastic=cls.stochastic)
            own = [spec for spec in specs if not spec.is_shared]
            ahead, back = (rows * trainings for rows in attack_cost.rows(own, view, stochastic=cls.stochastic))
            knowing = f", at most {ahead:,} forward and {back:,} backward rows of attackers who know it" if own else ""
            knowing += attack_cost.labels_asked(own, trainings)
            lines.append(f"  {name}: {len(names)} cells, {done} in the records, {passes:,} images to purify{knowing}")
    return lines
