"""Eliminating keys by the answers of EfficientNet-Lite0, against doing so by explained variance.

The 5×5 filters; the 3×3 ones stay. Crops of natural photographs, no labels: those from left halves
choose, those from right halves measure. Agreement is that of the first class with the original
network, after recalibration. About 20 minutes on two cores. Writes results/functional_discovery.md
and .json.

    python benchmarks/functional_discovery.py [--tries 3]
"""

from __future__ import annotations

import argparse
import copy
import time

import pandas as pd
from common import environment, markdown, write
from replacement import BATCH, network, prepared

import keyfilters as kf
from keyfilters.discovery.candidates import candidates
from keyfilters.discovery.elimination import eliminate
from keyfilters.discovery.functional import eliminate_by_answers
from keyfilters.discovery.shares import explained_shares
from keyfilters.scalespace import centred_unit
from keyfilters.surgery import recalibrate_batchnorm_
from keyfilters.training import agreement, logits, photographs, random_crops

COUNTS = (4, 8, 12, 16, 24, 32)
CHOOSING, MEASURING = 28, 105


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=3)
    tries = parser.parse_args().tries
    model = network()
    filters, table = kf.read(model).stack(5)
    unit = centred_unit(filters[(table["flaw"] == "").to_numpy()])
    pool = candidates(unit, 5, 50, kinds=("code", "lines", "idealized"))
    crops = {
        region: prepared(random_crops(photographs(), count, region=region, seed=0))
        for region, count in (("left", CHOOSING), ("right", MEASURING))
    }
    started = time.perf_counter()
    by_answers, curve = eliminate_by_answers(
        model, pool, crops["left"], tries=tries, batch_size=BATCH, progress=print
    )
    minutes = (time.perf_counter() - started) / 60
    by_variance = eliminate(explained_shares(unit, pool))
    reference = logits(model, crops["right"], batch_size=BATCH)
    rows = []
    for count in COUNTS:
        row: dict[str, object] = {"keys": count}
        for name, keys in (
            ("by answers", pool[by_answers.survivors(count)]),
            ("by variance", pool[by_variance.survivors(count)]),
            ("random", kf.KeySet.random(count, 5)),
        ):
            changed = copy.deepcopy(model)
            kf.replace_filters_(changed, keys)
            recalibrate_batchnorm_(changed, model, crops["left"], batch_size=BATCH)
            found = agreement(changed, reference, crops["right"], batch_size=BATCH)
            row[f"{name}, top-1"], row[f"{name}, KL"] = found.top1, found.kl
        rows.append(row)
        print(row, flush=True)
    shares = tuple(name for name in rows[0] if name.endswith("top-1"))
    told = (
        f"{len(pool)} candidates, {tries} tried for a drop ({int(curve['tried'].sum())} trials of "
        f"{CHOOSING} crops): {minutes:.1f} minutes. One seed; {MEASURING} crops measure."
    )
    data = {"minutes": minutes, "curve": curve.to_dict("records"), "measured": rows}
    parts = {"5×5 filters replaced": f"{told}\n\n{markdown(pd.DataFrame(rows), shares)}"}
    title = "Eliminating keys by the answers of EfficientNet-Lite0"
    write("functional_discovery", title, environment(), data, parts)


if __name__ == "__main__":
    main()
