"""Recipes: the values that are read, the refusals, and their words."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from toolkit import recipe as recipe_module
from toolkit import shipped
from toolkit.architectures import DepthwiseSettings
from toolkit.distill.teacher import TRAINED_BY
from toolkit.errors import RecipeError
from toolkit.networks.weights import read_info
from toolkit.recipe import FOLLOW_PICTURES, NEWER_SETTINGS, NOT_IN_FINGERPRINT, Recipe, builtin_names, load_builtin


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_toml_is_read_into_typed_sections(tmp_path: Path) -> None:
    recipe = Recipe.from_toml(write(tmp_path / "r.toml", "[distill]\nalpha = 1\n[data]\nmean = [0, 0.5, 1.0]\n"))
    assert recipe.distill.alpha == 1.0
    assert recipe.data.mean == (0.0, 0.5, 1.0)
    assert recipe.distill.temperature == Recipe().distill.temperature


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().distill.alpha = 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "distill.temprature=3",
            r"unknown key distill.temprature; did you mean distill.temperature\? valid here: epochs,",
        ),
        ("distil.epochs=3", r"unknown key distil; did you mean distill\? valid here: data, training"),
        ("distill.epochs=2.5", r"distill.epochs = 2.5 is not allowed; input should be a valid integer"),
        ("distill.epochs='2'", r'distill.epochs = "2" is not allowed; input should be a valid integer'),
        ("distill.alpha=1.5", r"distill.alpha = 1.5 is not allowed; input should be less than or equal to 1"),
        ("distill.temperature=0", r"distill.temperature = 0 is not allowed; input should be greater than 0"),
        ("distill.temperature=nan", r"distill.temperature = NaN is not allowed; input should be a finite number"),
        (
            "distill.method=foo",
            r"distill.method = \"foo\" is not allowed; valid: kd, dkd, dist, hard, fitnets, attention, similarity; a",
        ),
        ("distill.method=kd+atention", r"did you mean attention\? valid: kd,"),
        ("distill.method=kd+dkd", r"at most one of kd, dkd, dist, hard at a time"),
        ("distill.method=fitnets+similarity", r"at most one of fitnets, attention, similarity at a time"),
        ("distill.teacher_taps=['layer3']", r"--set: distill is not allowed; teacher_taps and student_taps must name"),
        ("teacher.start_image_size=200", r"teacher.start_image_size = 200 must not exceed data.image_size = 160"),
        ("distill.start_image_size=200", r"distill.start_image_size = 200 must not exceed data.image_size = 160"),
        ("distill.schedule=step", r"distill.schedule = \"step\" is not allowed; input should be 'constant', 'cosine'"),
        ("distill.ema=1", r"distill.ema = 1 is not allowed; input should be less than 1"),
        ("data.std=[1, 0, 1]", r"data.std.1 = 0 is not allowed; input should be greater than 0"),
        ("data.mean=[1,2]", r"data.mean.2 .* is not allowed; field required"),
        ("bench.runtimes=torch", r"bench.runtimes = \"torch\" is not allowed; input should be a list$"),
        ("data.crop_scale=[0.9, 0.5]", r"data.crop_scale = \[0.9, 0.5\] is not allowed; write the smaller number"),
        ("data.crop_scale=[0, 1]", r"data.crop_scale.0 = 0 is not allowed; input should be greater than 0"),
        ("data.crop_ratio=[2, 1]", r"data.crop_ratio = \[2, 1\] is not allowed; write the smaller number first"),
        ("data.color_jitter=0.4", r"data.color_jitter = 0.4 is not allowed; input should be a list"),
        ("data.color_jitter=[1, 1, 1, 1]", r"data.color_jitter.3 = 1 is not allowed; input should be less than"),
        ("data.blur_sigma=[1, 2]", r"data.blur_sigma.0 = 1 is not allowed; input should be less than or equal to 0.1"),
        ("data.augment=autoaugment", r"data.augment = \"autoaugment\" is not allowed; input should be 'none', 'ra"),
        ("data.augment_magnitude=31", r"data.augment_magnitude = 31 is not allowed; input should be less than"),
        ("data.flip=1", r"data.flip = 1 is not allowed; input should be a valid boolean"),
        (
            "student.bsae=8",
            r"unknown key student.bsae; did you mean student.base\? valid here: architecture, and for depthwise: base,",
        ),
        ("student.base=0", r"student.base = 0 is not allowed; input should be greater than or equal to 1"),
        ("student.base='8'", r'student.base = "8" is not allowed; input should be a valid integer'),
        ("student.width_mult=9", r"student.width_mult = 9 is not allowed; input should be less than or equal to 8"),
        ("student.architecture=3", r"student.architecture = 3 is not allowed; input should be a valid string"),
        (
            "teacher.base=8",
            r"unknown key teacher.base; base belongs to depthwise; .*, enlarge; resnet18 has no settings",
        ),
        ("temperature=3", r"--set 'temperature=3' is not section.key=value; write it like"),
        ("distill.alpha", r"--set 'distill.alpha' is not section.key=value"),
    ],
)
def test_a_bad_override_names_its_key_path_and_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe().with_overrides([override])


def test_overrides_are_toml_values_or_bare_words(tmp_path: Path) -> None:
    recipe = Recipe().with_overrides(
        [
            "data.source=some/dir",
            'student.architecture="mobilenet_v3_small"',
            "bench.batch_sizes=[1, 8]",
            "data.flip=false",
        ]
    )
    assert recipe.data.source == "some/dir"
    assert recipe.student.architecture == "mobilenet_v3_small"
    assert recipe.bench.batch_sizes == (1, 8)
    assert recipe.data.flip is False


def test_a_file_of_a_windows_editor(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbf[teacher]\r\nweights = 'C:\\Users\\t.pth'\r\n")
    assert Recipe.from_toml(tmp_path / "r.toml").teacher.weights == r"C:\Users\t.pth"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[distill\n", "is not valid TOML: .*line 1.*; correct that line"),
        (
            b'[teacher]\nweights = "C:\\Users\\t.pth"\n',
            "is not valid TOML: .*line 2.*; .* paths with / or in single quotes",
        ),
        (b"\xff\xfe", "cannot read the recipe .*: it is not UTF-8 text"),
        (b"distill = 3\n", "distill = 3 is not allowed; input should be a valid dictionary"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.from_toml(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file or directory; give --recipe a TOML file"):
        Recipe.from_toml(tmp_path / "no.toml")


def test_fingerprint_sees_settings_but_not_where_data_lies() -> None:
    recipe = Recipe()
    moved = recipe.with_overrides(["data.source=elsewhere", "data.workers=3"])
    assert recipe.fingerprint("data", "distill") == moved.fingerprint("data", "distill")
    hotter = recipe.with_overrides(["distill.temperature=9"])
    assert recipe.fingerprint("distill") != hotter.fingerprint("distill")
    assert recipe.fingerprint("data", "teacher", "training.seed") == hotter.fingerprint(
        "data", "teacher", "training.seed"
    )
    reseeded = recipe.with_overrides(["training.seed=1"])
    assert recipe.fingerprint("teacher", "training.seed") != reseeded.fingerprint("teacher", "training.seed")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["distill.method=dkd", "distill.mixup=0.2"], "dkd needs one label per image: set mixup to 0"),
        (["distill.method=dkd+attention", "distill.cutmix=1"], "dkd needs one label per image: set cutmix to 0"),
        (
            ["distill.method=kd+attention", "training.compile=default"],
            "reads the networks as they run: set training.compile to off",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_without_repeating_them_all(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe().with_overrides(overrides)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize(
    "method", ["kd", "dkd", "dist", "hard", "fitnets", "attention", "similarity", "dist+similarity"]
)
def test_methods_of_logits_and_of_layers_are_distinguished(method: str) -> None:
    section = Recipe().with_overrides([f"distill.method={method}"]).distill
    parts = {section.logit_method, section.feature_method} - {None}
    assert parts == set(method.split("+"))


def test_the_control_depends_on_everything_but_how_the_teacher_teaches() -> None:
    control = Recipe().control_fingerprint()
    teaching = [
        *("distill.method=dkd", "distill.temperature=9", "distill.alpha=0.1", "distill.standardize=true"),
        *("distill.dkd_other_weight=2", "distill.feature_weight=3", "teacher.epochs=7", "distill.control=true"),
    ]
    assert Recipe().with_overrides(teaching).control_fingerprint() == control
    for override in (
        *("distill.epochs=3", "training.seed=1", "distill.teacher_views=2", "distill.mixup=0.1", "data.flip=false"),
        *("student.base=8", "distill.schedule=cosine", "distill.label_smoothing=0.1", "distill.start_image_size=96"),
    ):
        assert Recipe().with_overrides([override]).control_fingerprint() != control, override


def test_the_built_in_recipes_are_valid_and_food11_is_the_notebook() -> None:
    assert builtin_names() == ["fashion-mnist", "food11", "food11-fast", "photographs"]
    assert load_builtin("food11-fast").distill.epochs == 15, "the notebook's"
    assert load_builtin("fashion-mnist").data.source == "fashion-mnist"
    notebook = load_builtin("food11")
    assert (notebook.distill.temperature, notebook.distill.alpha) == (20.0, 0.5)
    assert (notebook.distill.optimizer, notebook.distill.learning_rate, notebook.distill.weight_decay) == (
        "adamw",
        1e-3,
        0.01,
    )
    assert (notebook.distill.schedule, notebook.distill.batch_size, notebook.distill.epochs) == ("constant", 4, 15)
    assert (notebook.data.image_size, notebook.data.resize, notebook.data.rotation_degrees) == (256, 0, 15.0)
    assert (notebook.data.mean, notebook.data.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def settings_tables() -> str:
    """Every setting of the recipe as Markdown, from the models themselves."""
    lines: list[str] = []
    schemas = Recipe.model_json_schema()["$defs"]
    for name in Recipe.model_fields:
        properties = schemas[f"{name.capitalize()}Recipe"]
        lines += [f"### `[{name}]`", "", "| key | default | allowed | meaning |", "|---|---|---|---|"]
        fields = properties["properties"]
        if name == "student":
            fields |= DepthwiseSettings.model_json_schema()["properties"]
        for key, field in fields.items():
            default = f"`{json.dumps(getattr(getattr(Recipe(), name), key))}`"
            if f"{name}.{key}" in FOLLOW_PICTURES:
                default += " for photographs" if name == "data" else " for up to 10,000 images"
            lines.append(f"| `{key}` | {default} | {allowed(field)} | {field.get('description', '')} |")
        lines.append("")
    return "\n".join(lines)


def allowed(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if key in field
    ]
    if "anyOf" in field:
        one = next(choice for choice in field["anyOf"] if choice.get("type") != "null")
        return f"{'three numbers' if one.get('type') == 'array' else allowed(one)}, or absent"
    kind = {"number": "number", "integer": "whole number", "boolean": "true, false", "string": "text", "array": "list"}
    return " ".join([kind[field["type"]], ", ".join(bounds)]).strip()


def test_models_readme_lists_every_setting() -> None:
    readme = Path(__file__).parents[1] / "models" / "README.md"
    text = readme.read_text(encoding="utf-8")
    start = text.index("-->", text.index("<!-- settings:")) + len("-->\n")
    end = text.index("<!-- end of settings -->")
    if os.environ.get("KD_TOOLKIT_WRITE_DOCS"):
        readme.write_text(text[:start] + settings_tables() + text[end:], encoding="utf-8")
    else:
        assert text[start:end] == settings_tables(), "run this test again with KD_TOOLKIT_WRITE_DOCS=1"


def test_a_single_layer_s_name_gets_the_form_of_a_list() -> None:
    with pytest.raises(RecipeError, match=r'teacher_taps = "layer2" is not allowed; write a list of names'):
        Recipe().with_overrides(["distill.teacher_taps=layer2"])


@pytest.fixture
def _nothing_is_told_yet() -> Iterator[None]:
    recipe_module._reported_as_moved.clear()
    yield
    recipe_module._reported_as_moved.clear()


@pytest.mark.usefixtures("_nothing_is_told_yet")
class TestMovedSettings:
    """seed, precision and compile stood in [distill] before there was [training]."""

    OLD = '[distill]\nseed = 3\nprecision = "bf16"\ncompile = "default"\nalpha = 0.2\n'
    NEW = '[training]\nseed = 3\nprecision = "bf16"\ncompile = "default"\n[distill]\nalpha = 0.2\n'

    def test_an_old_file_is_read_as_a_new_one_and_reported_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        new = Recipe.from_toml(write(tmp_path / "new.toml", self.NEW))
        assert capsys.readouterr().err == ""
        old = Recipe.from_toml(write(tmp_path / "old.toml", self.OLD))
        assert capsys.readouterr().err == (
            "recipe: distill.seed is training.seed now, distill.precision is training.precision now, distill.compile is"
            " training.compile now, as teacher and student share it; the old name still works\n"
        )
        assert old == new
        assert old.states("training.seed")
        assert old.with_overrides(["distill.seed=4"]).training.seed == 4
        assert capsys.readouterr().err == "", "once per command"

    def test_an_override_by_the_old_name_wins_over_the_file(self, capsys: pytest.CaptureFixture[str]) -> None:
        recipe = Recipe().with_overrides(["training.seed=1"]).with_overrides(["distill.seed=2"])
        assert recipe.training.seed == 2
        assert capsys.readouterr().err.count("distill.seed is training.seed now") == 1
        assert recipe.with_overrides(["training.seed=5"]).training.seed == 5

    def test_its_value_is_checked_under_its_new_name(self) -> None:
        with pytest.raises(RecipeError, match=r"training\.precision = \"int8\" is not allowed; input should be 'auto'"):
            Recipe().with_overrides(["distill.precision=int8"])

    def test_both_names_with_two_values_are_refused_in_a_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = "[training]\nseed = 1\n[distill]\nseed = 2\n"
        message = r"r\.toml: one setting has two values; distill\.seed is training\.seed now: give one of them"
        with pytest.raises(RecipeError, match=message):
            Recipe.from_toml(write(tmp_path / "r.toml", text))
        assert capsys.readouterr().err == "", "no line that the old name works"
        assert Recipe.from_toml(write(tmp_path / "r.toml", text.replace("2", "1"))).training.seed == 1

    @pytest.mark.parametrize("names", [("distill.seed", "training.seed"), ("training.seed", "distill.seed")])
    def test_both_names_with_two_values_are_refused_as_overrides(
        self, names: tuple[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = "one setting has two values; distill.seed is training.seed now: give one of them"
        with pytest.raises(RecipeError) as refused:
            Recipe().with_overrides([f"{name}={value}" for value, name in enumerate(names)])
        assert str(refused.value) == f"--set: {words}"
        with pytest.raises(RecipeError) as refused:
            Recipe().with_overrides(dict(zip(names, (1, 2), strict=True)))
        assert str(refused.value) == f"settings: {words}"
        assert capsys.readouterr().err == ""
        assert Recipe().with_overrides(dict.fromkeys(names, 3)).training.seed == 3, "one value"

    def test_of_one_name_the_last_value_holds(self) -> None:
        assert Recipe().with_overrides(["training.seed=7", "training.seed=8"]).training.seed == 8

    def test_recipes_in_weights_of_earlier_versions_are_read_silently(self, capsys: pytest.CaptureFixture[str]) -> None:
        values = Recipe().model_dump(mode="json")
        written = values | {"distill": values["distill"] | values.pop("training") | {"seed": 7}}
        for recipe in (Recipe.model_validate(written), Recipe.from_dict(written, "student.safetensors")):
            assert recipe == Recipe().with_overrides(["training.seed=7"])
        assert written["distill"]["seed"] == 7, "left as it was"
        assert capsys.readouterr().err == ""

    def test_a_section_that_is_no_table_is_refused_as_any_other(self) -> None:
        with pytest.raises(RecipeError, match=r"training = 3 is not allowed; input should be a valid dictionary"):
            Recipe.from_dict({"training": 3, "distill": {"seed": 1}}, "r.toml")

    def test_fingerprints_know_them_by_their_first_place(self) -> None:
        recipe = Recipe().with_overrides(["training.seed=3", "training.precision=bf16", "teacher.epochs=7"])
        values = recipe.model_dump(mode="json")
        distill = values["distill"] | values["training"]
        first = {f"{name}.{key}": value for name in ("data", "student") for key, value in values[name].items()}
        first |= {f"distill.{key}": value for key, value in distill.items()}
        known = {key: value for key, value in first.items() if key not in {*NEWER_SETTINGS, *NOT_IN_FINGERPRINT}}
        expected = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        assert recipe.fingerprint("data", "student", "distill") == expected
        assert recipe.fingerprint("data", "student", "distill", "training") == expected
        two = json.dumps({"distill.precision": "bf16", "distill.seed": 3}).encode()
        assert recipe.fingerprint("training.seed", "training.precision") == hashlib.sha256(two).hexdigest()

    def test_a_file_of_an_earlier_version_is_still_up_to_date(self) -> None:
        info = read_info(shipped.weights_files()["fashion-mnist"])
        assert "seed" in info.recipe["distill"], "it is of an earlier version"
        recipe = Recipe.from_dict(info.recipe, "teacher-resnet18.safetensors")
        assert recipe.fingerprint("data", *TRAINED_BY) == info.recipe_sha256


def test_a_seed_that_no_generator_takes() -> None:
    with pytest.raises(RecipeError, match=r"training\.seed = 9223372036854775808 is not allowed"):
        Recipe().with_overrides([f"training.seed={2**63}"])


@pytest.mark.parametrize(
    ("setting", "unused", "used"),
    [
        *(("data.share", "1.0", "0.5"), ("teacher.enlarge", None, "2"), ("teacher.cutmix", "0.0", "1.0")),
        *(("data.crop_scale", "[1, 1.0]", "[0.5, 1]"), ("data.color_jitter", "[0, 0, 0, 0]", "[0, 0, 0, 0.1]")),
    ],
)
def test_a_newer_setting_that_changes_nothing_is_as_if_there_were_none(
    setting: str, unused: str | None, used: str
) -> None:
    """Files that were made before there was such a setting stay up to date."""
    section = setting.partition(".")[0]
    given = [f"{setting}={unused}"] if unused else []
    without, changed = Recipe().with_overrides(given), Recipe().with_overrides([f"{setting}={used}"])
    assert without.fingerprint(section) == Recipe().fingerprint(section) != changed.fingerprint(section)
    values = {f"{section}.{key}": value for key, value in Recipe().model_dump(mode="json")[section].items()}
    known = {key: value for key, value in values.items() if key not in {*NEWER_SETTINGS, *NOT_IN_FINGERPRINT}}
    expected = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    assert Recipe().fingerprint(section) == expected


class TestSettingsOfNetworks:
    """Each architecture's own, beside `architecture`."""

    def test_files_of_earlier_versions_have_the_depthwise_ones_for_every_student(self) -> None:
        resnet = {"student": {"architecture": "resnet18", "base": 16, "width_mult": 1.0}}
        assert Recipe.from_dict(resnet, "a file").student.settings == {}
        with pytest.raises(RecipeError, match=r"unknown key student.base; base belongs to depthwise; valid here: arch"):
            Recipe.from_dict({"student": {"architecture": "resnet18", "base": 8}}, "a file")

    @pytest.mark.parametrize(
        ("overrides", "student", "teacher"),
        [
            ([], "4bb809a0", "83c022a4"),
            (["student.base=8", "student.width_mult=2"], "ec04e1a9", "83c022a4"),
            (["student.architecture=resnet18"], "ebba3bd6", "83c022a4"),
        ],
    )
    def test_fingerprints_are_those_of_earlier_versions(self, overrides: list[str], student: str, teacher: str) -> None:
        """As 9a6d517 computed them: results of that time stay up to date."""
        recipe = Recipe().with_overrides(overrides)
        assert recipe.fingerprint("student")[:8] == student
        assert recipe.fingerprint("teacher")[:8] == teacher

    def test_a_depthwise_teacher_has_its_own_and_its_fingerprint_sees_them(self) -> None:
        teacher = Recipe().with_overrides(["teacher.architecture=depthwise"])
        assert teacher.teacher.settings == {"base": 16, "width_mult": 1.0}
        of_student = teacher.with_overrides(["student.base=4"])
        assert of_student.teacher.settings == teacher.teacher.settings
        assert of_student.fingerprint("teacher") == teacher.fingerprint("teacher")
        smaller = teacher.with_overrides(["teacher.base=4"])
        assert smaller.teacher.settings == {"base": 4, "width_mult": 1.0}
        assert smaller.fingerprint("teacher") != teacher.fingerprint("teacher")
        assert smaller.fingerprint("student") == teacher.fingerprint("student")

    def test_a_setting_left_to_its_default_is_not_stated(self) -> None:
        recipe = Recipe().with_overrides(["teacher.architecture=depthwise", "teacher.base=8"])
        assert recipe.with_overrides(["teacher.epochs=3"]).teacher.stated_settings == {"base": 8}

    def test_a_setting_is_written_as_it_is_meant(self, tmp_path: Path) -> None:
        recipe = Recipe.from_toml(write(tmp_path / "r.toml", "[student]\nwidth_mult = 2\n"))
        assert json.dumps(recipe.model_dump(mode="json")["student"]["width_mult"]) == "2.0"


def test_a_path_that_is_not_utf8_is_refused_with_a_way_out() -> None:
    with pytest.raises(
        RecipeError, match=r"data\.source = \".*\" is not UTF-8 text; rename that folder or file, or link"
    ):
        Recipe().with_overrides({"data.source": os.fsdecode(b"photos\xff")})


@pytest.mark.parametrize("setting", ["distill.method", "distill.student_taps", "x" * 3000])
def test_a_value_of_any_length_fits_into_the_message(setting: str) -> None:
    section, _, key = setting.partition(".")
    with pytest.raises(RecipeError) as refused:
        Recipe.from_dict({section: {key.partition("=")[0]: "x" * 3000}}, "recipe.toml")
    assert len(str(refused.value)) < 1000


def test_a_long_name_of_an_architecture_fits_into_the_message() -> None:
    with pytest.raises(RecipeError, match=r"unknown key student\.base") as refused:
        Recipe.from_dict({"student": {"architecture": "x" * 3000, "base": 3}}, "recipe.toml")
    assert len(str(refused.value)) < 1000
