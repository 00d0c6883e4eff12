"""Commands for models that are finished: compare, load-test, predict and demo."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import (
    DEFAULT_MODEL_DIR,
    OUTPUT,
    WHERE,
    ClientsOption,
    JsonOption,
    ModelDirArgument,
    PrecisionOption,
    ProviderOption,
    RoleOption,
    SecondsOption,
)
from toolkit.modeldir import ModelDir


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A directory with a report.json.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The directory to compare with.")],
    as_json: JsonOption = False,
) -> None:
    """Put the reports of two model directories side by side. Nothing is measured."""
    from toolkit.cli import bench

    bench.compare(first, second, as_json)


def load_test(
    model: ModelDirArgument = DEFAULT_MODEL_DIR,
    clients: ClientsOption = 8,
    seconds: SecondsOption = 10.0,
    role: RoleOption = "student",
    precision: PrecisionOption = "fp32",
    provider: ProviderOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Put one ONNX file under the load of many clients: images per second, and the latency that clients see."""
    from toolkit.sessions.providers import require_provider

    require_provider(provider)
    from toolkit.cli import bench

    bench.put_under_load(model, provider, clients, seconds, role, precision, as_json)


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file, or a model directory (its student).")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")],
    k: Annotated[
        int, typer.Option("-k", "--top", min=1, metavar="K", rich_help_panel=OUTPUT, help="How many classes to print.")
    ] = 5,
    provider: ProviderOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Classify images with the ONNX file alone; torch is not needed."""
    from toolkit.sessions.providers import require_provider

    require_provider(provider)
    from toolkit.predict import predict_files, print_predictions

    print_predictions(predict_files(model, images, k=k, provider=provider), as_json=as_json)


def demo(
    models: Annotated[
        list[Path] | None, typer.Argument(metavar="MODEL_DIR", help="Directories with exported ONNX files.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            envvar="KD_TOOLKIT_HOST",
            rich_help_panel=WHERE,
            help="Address to listen on; 0.0.0.0 is all of this machine's.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            "--port",
            min=1,
            max=65535,
            metavar="N",
            envvar="KD_TOOLKIT_PORT",
            rich_help_panel=WHERE,
            help="Port to listen on.",
        ),
    ] = 7860,
    max_upload: Annotated[
        int,
        typer.Option(
            "--max-upload",
            min=1,
            max=1000,
            metavar="MB",
            envvar="KD_TOOLKIT_MAX_UPLOAD",
            rich_help_panel="Visitors",
            help="Largest file that a visitor may upload.",
        ),
    ] = 10,
    provider: ProviderOption = "auto",
) -> None:
    """Serve a web page: upload a picture and see the answers of teacher and student side by side.

    If KD_TOOLKIT_USER and KD_TOOLKIT_PASSWORD are set, visitors must sign in with them; /healthz answers everyone.
    """
    from toolkit.sessions.providers import require_provider

    require_provider(provider)
    from toolkit.demo.server import serve

    model_dirs = [ModelDir(path) for path in models or [DEFAULT_MODEL_DIR]]
    serve(model_dirs, host=host, port=port, provider=provider, max_upload_mb=max_upload)
