"""The OpenAPI document checked against a running service: every answer is one that the document describes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from serving.api import Api
from serving.artifact import Artifact
from serving.classify import Serving
from serving.images import CONTENT_TYPES
from serving.settings import Settings
from tests.fakes.interface import behind
from tests.fakes.pictures import jpeg
from tests.fakes.server import Server, serve
from tests.spellings import LOOK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
]

# A body of these types is an image now and then.
for kind in CONTENT_TYPES:
    schemathesis.openapi.media_type(kind, st.one_of(st.just(jpeg()), st.binary(min_size=1, max_size=100)))

BEYOND: dict[str, list[Any]] = {
    # The document cannot say that `top_k` and `model` may be in the query or in the form, but not in both.
    "/classify": [positive_data_acceptance],
    "/classify/batch": [positive_data_acceptance],
    # Here `top_k=0` is an error of each model as well, in an answer of 200.
    "/compare": [positive_data_acceptance, negative_data_rejection],
}


@pytest.fixture(scope="module")
def service(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("openapi") / "log"
    with serve(log, PODIUM_MODELS=tiny.tag, PODIUM_TOKEN="look") as running:
        yield running


schema = schemathesis.openapi.from_dict(
    json.loads(Api(behind, Serving(Settings.read({"PODIUM_TOKEN": "look"}), [], CollectorRegistry())).description.body)
)


bounded = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@schema.parametrize()
@bounded
def test_the_service_answers_as_its_document_says(case: schemathesis.Case[Any], service: Server) -> None:
    case.call_and_validate(service.url, headers=LOOK, excluded_checks=BEYOND.get(case.path, []))


@schema.include(path_regex="NETWORK").parametrize()
@bounded
def test_the_document_is_right_for_a_loaded_model(
    case: schemathesis.Case[Any], service: Server, tiny: Artifact
) -> None:
    names = {"NETWORK": tiny.network, "VERSION": tiny.version}
    case.path_parameters = {key: names[key] for key in case.path_parameters}
    # Every name is now that of a loaded model. The document cannot say which tensor a model takes.
    case.call_and_validate(
        service.url, headers=LOOK, excluded_checks=[positive_data_acceptance, negative_data_rejection]
    )
