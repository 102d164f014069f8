"""What is predicted to fit runs in a control group of that memory, to the end of its context; what is refused is killed there."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from edgebuild.choice import make_versions
from edgebuild.fit import make_fit
from edgebuild.gguf import read_gguf_header
from edgebuild.model_spec import make_model_spec
from edgebuild.profile import load_profile
from tests.support.built import Edgebuild, assert_refused
from tests.support.fixtures import Peers
from tests.support.memory_group import limited_group
from tests.support.peers.errors import PeerUnavailableError
from tests.support.resident import SETTINGS, Setting, build_image, fill_context
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.unpacked import running_image

(CACHE,) = [setting for setting in SETTINGS if setting.name == "cache of f16, 4 slots"]
AUTO = "quantization: auto\nauto: {quantizations: [Q4_K_M], kv_types: [f16, q8_0]}\n"

pytestmark = pytest.mark.slow


def need_bytes(setting: Setting, folder: Path, kv_type: str) -> int:
    """What the plan counts for a setting with a type of cache."""
    path = folder / "random.gguf"
    if not path.exists():
        write_tiny_gguf(path, context_tokens=setting.context_tokens, **setting.shape)
    (folder / "sized.yaml").write_text(setting.profile())
    profile = load_profile(str(folder / "sized.yaml"), working_directory=folder)
    model = make_model_spec(read_gguf_header(path), file_name=path.name)
    made = make_versions(model, (profile,), override=setting.quantization)[setting.quantization].spec
    return make_fit(made, profile, is_estimate=True, kv_type=kv_type).need_bytes


def test_what_fits_runs_and_what_does_not_is_killed(
    edgebuild: Edgebuild, built_lock: Path, peers: Peers
) -> None:
    def build(*arguments: str | Path) -> None:
        edgebuild.run("image", "--lock", built_lock, "--locked", *arguments, timeout_s=1800)

    # A device whose memory the smaller cache just fits.
    memory = need_bytes(CACHE, edgebuild.folder, "q8_0")
    image = build_image(CACHE, edgebuild.folder, build=build, memory=str(memory), more=AUTO)
    assert image.runtime["memory"]["need_bytes"] == memory
    settings = {"EDGE_REQUEST_S": 1800}
    with ExitStack() as stack:
        # A limit is a whole number of pages.
        group = peers.enter(stack, limited_group("limit", -(-memory // 4096) * 4096))
        with running_image(image, settings, prefix=group.prefix) as server:
            tokens = fill_context(image, server.port)
        assert min(tokens) > 0.9 * CACHE.context_tokens
        assert group.kills == 0

        # The plan refuses the larger cache there …
        fixed = edgebuild.folder / "fixed.yaml"
        fixed.write_text(CACHE.profile(memory=str(memory)))
        done = edgebuild.run(
            "image", "--profile", fixed, "--model", edgebuild.folder / "random.gguf", "--quantization",
            CACHE.quantization, "--lock", built_lock, "--locked", "--output", edgebuild.folder / "refused",
            check=False,
        )  # fmt: skip
        assert_refused(done, 4, "does not fit measured (computed before quantising): needs")

        # … and where that is overruled, the kernel ends the server.
        larger = {"EDGE_KV_TYPE": "f16", **settings}
        with (
            pytest.raises((PeerUnavailableError, AssertionError, OSError)),
            running_image(image, larger, prefix=group.prefix) as server,
        ):
            fill_context(image, server.port)
        assert group.kills > 0
