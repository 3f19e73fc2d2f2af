"""The folder `kernels/`: a Hugging Face kernel's source that never stands before PyPI's `kernels`."""

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch

import ms_deform_attn
from ms_deform_attn import build, layers, toolchain
from ms_deform_attn.toolchain import Unavailable

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "kernels"


def python(code, cwd, **options):
    command = [sys.executable, *options.pop("flags", []), "-c", textwrap.dedent(code)]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


# ------------------------------------------------------------------------------------------------------- the shadow


def test_the_folder_is_no_package():
    assert not (KERNELS / "__init__.py").exists()
    assert list(KERNELS.glob("*.py")) == []


@pytest.mark.slow
def test_without_pypis_kernels_transformers_finds_none():
    # -S: no site-packages but those named, so that an installed `kernels` cannot answer.
    code = """
        import importlib.util
        import kernels
        assert kernels.__file__ is None  # an empty namespace, nothing to use by mistake
        spec = importlib.util.find_spec("kernels")
        assert spec.origin is None and spec.loader.__class__.__name__ == "NamespaceLoader"
        print("ok")
    """
    assert python(code, ROOT, flags=["-S"]) == "ok\n"
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    code = """
        from importlib.metadata import PackageNotFoundError, version
        from transformers.utils.import_utils import is_kernels_available
        try:
            version("kernels")
        except PackageNotFoundError:
            assert not is_kernels_available()
        import ms_deform_attn
        print("ok")
    """
    assert python(code, ROOT) == "ok\n"


@pytest.mark.parametrize("where", ["before", "behind"])
def test_with_pypis_kernels_that_one_is_imported(where, tmp_path):
    # A stand-in for the installed package, before and behind the repository on the path.
    installed = tmp_path / "site-packages" / "kernels"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("answer = 'the real one'\n")
    code = f"""
        import sys
        position = 0 if {where!r} == "before" else len(sys.path)
        sys.path.insert(position, {str(installed.parent)!r})
        import kernels
        print(kernels.answer)
    """
    assert python(code, ROOT, flags=["-S"]) == "the real one\n"


# -------------------------------------------------------------------------------------------------------- the source


def test_the_readmes_example(capsys):
    example = (KERNELS / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(compile(example, "README.md", "exec"), {})
    first, second = capsys.readouterr().out.splitlines()
    assert f"print(tuple(out.shape))  # {first}\n" in example
    if ms_deform_attn.backends()["cpu"] and not torch.cuda.is_available() and torch.version.cuda:
        assert f"# {second}\n" in example


def test_build_toml_names_what_is_there():
    config = tomllib.loads((KERNELS / "build.toml").read_text(encoding="utf-8"))
    general = config["general"]
    assert (general["name"], general["version"], general["license"]) == (
        build.HUB_NAME,
        build.HUB_VERSION,
        build.HUB_LICENSE,
    )
    assert general["backends"] == sorted({kernel["backend"] for kernel in config["kernel"].values()})
    package = KERNELS / "torch-ext" / general["name"].replace("-", "_")
    assert (package / "__init__.py").is_file() and "layers" in ms_deform_attn.__all__
    assert {f"{name}.py" for name in build.HUB_MODULES} | {"build.py"} == {path.name for path in package.glob("*.py")}

    sources = set(config["torch"]["src"]).union(*(kernel["src"] for kernel in config["kernel"].values()))
    assert {KERNELS / source for source in sources} == set((package / "csrc").iterdir())
    # Each section can be compiled by itself: it lists the headers that its files include.
    for kernel in config["kernel"].values():
        listed = {Path(source).name for source in kernel["src"]}
        for source in kernel["src"]:
            text = (KERNELS / source).read_text(encoding="utf-8")
            included = {line.split('"')[1] for line in text.splitlines() if line.startswith('#include "')}
            assert included <= listed, source


def test_the_package_that_is_installed_is_that_source():
    assert Path(ms_deform_attn.__file__).resolve().parent == KERNELS / "torch-ext" / "ms_deform_attn"


def test_kernels_own_parser_accepts_build_toml():
    pytest.importorskip("kernels._rust", reason="PyPI's kernels is not installed")
    from kernels._rust import Backend, Build

    assert Build.open(KERNELS).all_kernel_depends(Backend.CPU) == []  # reads and checks the whole file


# --------------------------------------------------------------------------------------------------------- the layout


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    try:
        toolchain.find_cxx_compiler()
    except Unavailable as unavailable:
        pytest.skip(str(unavailable))
    assert build.main(["--hub", str(folder)]) == 0
    return folder


def load_as_kernels_does(variant):
    """What `kernels.get_local_kernel` does with a variant: import it by path, under the id of its metadata."""
    name = json.loads((variant / "metadata.json").read_text(encoding="utf-8"))["id"]
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["compiled", "sources"])
def test_the_build_layout_loads_beside_the_installed_package(kind, hub_folder, make_inputs):
    source, compiled = sorted((hub_folder / "build").iterdir())
    assert source.name == "torch-cuda" and compiled.name.startswith("torch-stable-abi210-cpu-")
    variant = hub_folder / "build" / {"sources": source.name, "compiled": compiled.name}[kind]
    kernel = load_as_kernels_does(variant)
    assert kernel.backends()["cpu"]
    if kind == "compiled":
        assert list(variant.glob("*.abi3.so"))
        assert kernel.backends()["cuda"] == "this build of the kernel has no CUDA code"
    else:  # compiles like the package
        assert kernel.backends() == ms_deform_attn.backends()
    value, spatial_shapes, locations, weights = make_inputs(requires_grad=True)
    results = []
    for function in (kernel.ms_deform_attn, ms_deform_attn.ms_deform_attn):
        output = function(value, spatial_shapes, locations, weights, backend="cpu")
        results.append([output, *torch.autograd.grad(output.sum(), (value, locations, weights))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kernel.layers.MultiScaleDeformableAttention is not layers.MultiScaleDeformableAttention


@pytest.mark.slow
def test_building_again_replaces_the_layout(hub_folder):
    before = sorted((hub_folder / "build").iterdir())
    variant = hub_folder / "build" / "torch-cuda"
    (variant / "stray.py").write_text("")
    assert build.build_hub_kernel(hub_folder, "cuda", []) == variant
    assert not (variant / "stray.py").exists()
    assert sorted((hub_folder / "build").iterdir()) == before


@pytest.fixture
def pypi_kernels():
    kernels = pytest.importorskip("kernels", reason="PyPI's kernels is not installed")
    if not hasattr(kernels, "get_local_kernel"):  # the folder of the repository, as an empty namespace
        pytest.skip("PyPI's kernels is not installed")
    return kernels


@pytest.mark.parametrize("backend", ["cpu", None])
def test_kernels_itself_loads_the_layout(backend, pypi_kernels, hub_folder, make_inputs):
    kernel = pypi_kernels.get_local_kernel(hub_folder, backend=backend)  # None: what torch is built for
    inputs = make_inputs()
    assert torch.equal(kernel.ms_deform_attn(*inputs), ms_deform_attn.ms_deform_attn(*inputs))


def test_kernels_itself_swaps_the_layer_in(pypi_kernels, hub_folder, make_inputs):
    modeling = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    name = "MultiScaleDeformableAttention"

    @pypi_kernels.use_kernel_forward_from_hub(name)
    class Attention(modeling.MultiScaleDeformableAttention):  # kernelize compares the signatures
        pass

    repository = pypi_kernels.LocalLayerRepository(hub_folder, layer_name=name)
    mode = pypi_kernels.Mode.TRAINING | pypi_kernels.Mode.TORCH_COMPILE
    with pypi_kernels.use_kernel_mapping({name: {"cpu": repository}}):
        layer = pypi_kernels.kernelize(Attention(), mode=mode, device="cpu", use_fallback=False)
    assert layer.forward.__module__.startswith("_ms_deform_attn_")
    value, spatial_shapes, locations, weights = make_inputs()
    output = layer(value, spatial_shapes, spatial_shapes.tolist(), torch.tensor([0, 30, 34]), locations, weights, 64)
    assert torch.equal(output, ms_deform_attn.ms_deform_attn(value, spatial_shapes, locations, weights))


@pytest.mark.slow
def test_the_sources_of_the_hubs_cuda_build_compile(tmp_path):
    from ms_deform_attn import cuda

    nvcc = cuda.find_nvcc()
    if problem := cuda.nvcc_problem(nvcc):
        pytest.skip(problem)
    # Parsed and checked as a whole (host and device), without the long last step.
    source = toolchain.SOURCES / "cuda_launch.cu"
    toolchain.run(
        [[nvcc, "-std=c++17", "-ptx", "-arch=sm_90", str(source), "-o", str(tmp_path / "x")]], tmp_path / "log"
    )
    binding = toolchain.SOURCES / "binding.cpp"
    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++17", "-fsyntax-only", "-DCUDA_KERNEL", "-DMS_DEFORM_ATTN_JIT", "-DTORCH_EXTENSION_NAME=check"]
    toolchain.run([[toolchain.find_cxx_compiler(), *flags, f"-I{include}", str(binding)]], tmp_path / "log")


# ---------------------------------------------------------------------------------------------------------- the layer


def test_the_layer_is_what_transformers_swaps_in(make_inputs):
    modeling = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    value, spatial_shapes, locations, weights = make_inputs()
    sizes = [tuple(pair) for pair in spatial_shapes.tolist()]
    starts = torch.tensor([0, 30, 34])
    arguments = (value, spatial_shapes, sizes, starts, locations, weights, 64)
    expected = modeling.MultiScaleDeformableAttention()(*arguments)
    torch.testing.assert_close(layers.MultiScaleDeformableAttention()(*arguments), expected, rtol=1e-4, atol=1e-5)


def test_the_layer_follows_the_hubs_rules():
    layer = layers.MultiScaleDeformableAttention
    # No constructor, only forward, and of class variables these two.
    members = {name for name in vars(layer) if not name.startswith("__")}
    assert members == {"forward", "has_backward", "can_torch_compile"}
    assert layer.has_backward and layer.can_torch_compile and "__init__" not in vars(layer)


def test_a_detr_model_gives_the_same_with_the_layer():
    modeling = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    from transformers import DeformableDetrConfig

    config = DeformableDetrConfig(d_model=32, encoder_attention_heads=4, num_feature_levels=2, encoder_n_points=3)
    torch.manual_seed(0)
    attention = modeling.DeformableDetrMultiscaleDeformableAttention(config, num_heads=4, n_points=3).eval()
    sizes, pixels = [(4, 5), (2, 3)], 26
    arguments = {
        "hidden_states": torch.randn(2, pixels, 32),
        "encoder_hidden_states": torch.randn(2, pixels, 32),
        "reference_points": torch.rand(2, pixels, 2, 2),
        "spatial_shapes": torch.tensor(sizes),
        "spatial_shapes_list": sizes,
        "level_start_index": torch.tensor([0, 20]),
    }
    expected = attention(**arguments)[0]
    attention.attn.forward = layers.MultiScaleDeformableAttention().forward
    torch.testing.assert_close(attention(**arguments)[0], expected, rtol=1e-4, atol=1e-5)
