"""The Open Inference Protocol, asked by Triton's own client as it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import oip
from serving.artifact import Artifact
from serving.errors import BadRequest
from serving.runtime import open
from tests.conftest import SHAPE
from tests.fakes.server import Server

pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
    # geventhttpclient, which tritonclient uses
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)


def test_health_and_metadata(server: Server, tiny: Artifact) -> None:
    import tritonclient.http as triton

    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.is_model_ready("tiny", tiny.version)
        assert not client.is_model_ready("other")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
        told = client.get_model_metadata("tiny")
    assert (told["name"], told["versions"]) == ("tiny", [tiny.version])
    assert told["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, *SHAPE]}]
    assert told["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, tiny.classes]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer_gives_the_engines_probabilities(
    binary_in: bool, binary_out: bool, server: Server, tiny: Artifact, images: np.ndarray
) -> None:
    import tritonclient.http as triton

    asked = triton.InferInput("image", list(images.shape), "UINT8")
    asked.set_data_from_numpy(images, binary_data=binary_in)
    wanted = triton.InferRequestedOutput("probabilities", binary_data=binary_out)
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        answer = client.infer("tiny", [asked], outputs=[wanted], request_id="seven")
        assert answer.get_response()["id"] == "seven"
        plain = client.infer("tiny", [asked], model_version=tiny.version).as_numpy("probabilities")
    runtime = open(tiny)
    expected = runtime.run(images)
    runtime.close()
    np.testing.assert_allclose(answer.as_numpy("probabilities"), expected, atol=1e-6)
    np.testing.assert_allclose(plain, expected, atol=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_classification_names_the_likeliest(binary: bool, server: Server, tiny: Artifact, images: np.ndarray) -> None:
    import tritonclient.http as triton

    asked = triton.InferInput("image", list(images.shape), "UINT8")
    asked.set_data_from_numpy(images)
    wanted = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        words = client.infer("tiny", [asked], outputs=[wanted]).as_numpy("probabilities")
    runtime = open(tiny)
    best = runtime.run(images).argmax(1)
    runtime.close()
    first = [bytes(row[0]).decode() if binary else str(row[0]) for row in words]
    assert words.shape == (3, 2)
    assert [int(word.strip("b'").split(":")[1]) for word in first] == best.tolist()
    assert first[0].strip("b'").split(":")[2] == tiny.labels[int(best[0])].label


def test_errors_are_sentences_of_the_protocol(server: Server, images: np.ndarray) -> None:
    import tritonclient.http as triton
    from tritonclient.utils import InferenceServerException

    asked = triton.InferInput("image", [1, 8, 8, 3], "UINT8")
    asked.set_data_from_numpy(np.zeros((1, 8, 8, 3), np.uint8))
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(InferenceServerException, match=r"expected image, UINT8 \[n, 32, 32, 3\]"):
            client.infer("tiny", [asked])
        with pytest.raises(InferenceServerException, match="no model is called 'other'"):
            client.infer("other", [asked])
        with pytest.raises(InferenceServerException, match="is loaded in version"):
            client.get_model_metadata("tiny", "1")
    status, body = server.ask("GET", "/v2/models/tiny/other")
    assert (status, list(json.loads(body))) == (404, ["error"])
    assert server.ask("DELETE", "/v2/models/tiny")[0] == 405
    assert server.ask("POST", "/v2/models/tiny/infer", b"{", {"Content-Type": "application/json"})[0] == 400


def test_the_images_are_counted(server: Server) -> None:
    text = server.ask("GET", "/metrics")[1].decode()
    assert 'podium_stage_seconds_count{model="tiny",stage="inference"}' in text


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=300), st.sampled_from([b"", b"0", b"2", b"17", b"-1", b"x"]))
def test_any_body_is_read_or_refused(body: bytes, length: bytes) -> None:
    try:
        oip.parse(body, length, (2, 2, 1), 4, 8)
    except BadRequest as error:
        assert str(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "inputs": st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "name": st.just("image") | JSON,
                        "datatype": st.just("UINT8") | JSON,
                        "shape": st.just([1, 2, 2, 1]) | JSON,
                        "data": st.just([1, 2, 3, 4]) | JSON,
                        "parameters": JSON,
                    },
                ),
                max_size=2,
            )
            | JSON,
            "outputs": JSON,
            "parameters": JSON,
            "id": JSON,
        },
    )
)
def test_any_request_is_read_or_refused(said: dict[str, object]) -> None:
    try:
        asked = oip.parse(json.dumps(said).encode(), b"", (2, 2, 1), 4, 8)
    except BadRequest as error:
        assert str(error)
    else:
        assert asked.images.shape == (1, 2, 2, 1)
