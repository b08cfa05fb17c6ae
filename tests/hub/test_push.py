"""Uploading: what is retried, what is not, and what the message says in the end."""

import json
import shlex
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session
from transformers import IJepaConfig

from hf_jepa import IJepaForPreTraining, IJepaPreTrainingConfig
from hf_jepa.hub import PushError, push_release, render_card, save_release


@pytest.fixture
def release(tmp_path):
    encoder = IJepaConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    config = IJepaPreTrainingConfig(encoder_config=encoder, predictor_hidden_size=8, predictor_num_hidden_layers=1)
    results = {"model": {"name": "tiny"}, "licence": "apache-2.0"}
    return save_release(IJepaForPreTraining(config), tmp_path / "a release", results=results)


def http_error(status: int) -> HfHubHTTPError:
    session = get_session()
    module = __import__(type(session).__module__.split(".")[0])  # httpx, or the name it has in this release
    request = module.Request("POST", "https://hub.invalid/api")
    return HfHubHTTPError(f"{status} from the Hub\nRequest ID: 1", response=module.Response(status, request=request))


def read_timeout() -> Exception:
    module = __import__(type(get_session()).__module__.split(".")[0])
    return module.ReadTimeout("timed out")


class FakeApi:
    """Fails with the given errors, one a call, then succeeds."""

    def __init__(self, *errors: Exception):
        self.errors = list(errors)
        self.uploads = []
        self.created = []
        self.branches = []

    def create_repo(self, repo_id, private=None, exist_ok=False):
        assert exist_ok
        self.created.append((repo_id, private))
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def create_branch(self, repo_id, branch, exist_ok=False):
        assert exist_ok
        self.branches.append((repo_id, branch))

    def upload_folder(self, **kwargs):
        self.uploads.append(kwargs)
        if self.errors:
            raise self.errors.pop(0)
        return "https://hub.invalid/commit/1"


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr("hf_jepa.hub.push.time.sleep", seconds.append)
    return seconds


def test_upload(release, waits):
    api = FakeApi()
    assert push_release(release, "me/tiny", private=True, revision="v1", api=api) == "https://hub.invalid/commit/1"
    assert api.created == [("me/tiny", True)]
    assert api.uploads[0]["folder_path"] == release
    assert api.uploads[0]["revision"] == "v1"
    assert not waits


@pytest.mark.parametrize(
    "error",
    [http_error(429), http_error(500), http_error(503), TimeoutError("slow"), ConnectionError(), read_timeout()],
)
def test_passing_troubles_are_retried_with_growing_waits(release, waits, error):
    api = FakeApi(error, error)
    push_release(release, "me/tiny", api=api, wait_seconds=2.0)
    assert len(api.uploads) == 3
    assert waits == [2.0, 4.0]


@pytest.mark.parametrize("error", [http_error(401), http_error(403), http_error(404), ValueError("bad name")])
def test_lasting_troubles_are_not_retried(release, waits, error):
    api = FakeApi(error)
    with pytest.raises(PushError, match="1 try"):
        push_release(release, "me/tiny", api=api)
    assert len(api.uploads) == 1
    assert not waits


@pytest.mark.parametrize("error", [http_error(401), http_error(429), http_error(500), read_timeout()])
def test_the_message_holds_the_command_that_finishes_it(release, waits, error):
    with pytest.raises(PushError) as caught:
        push_release(release, "me/tiny", private=True, api=FakeApi(*[error] * 9), attempts=3)
    command = str(caught.value).partition("with: ")[2]
    assert command.startswith("hf upload me/tiny ")
    assert shlex.split(command) == ["hf", "upload", "me/tiny", str(release), "--private"]
    assert ("hf auth login" in str(caught.value)) == (
        getattr(error, "response", None) is not None and "401" in str(error)
    )
    assert (release / "model.safetensors").is_file()


def test_unfit_releases_are_never_sent(release, waits):
    torch.save({}, release / "optimizer.pt")
    api = FakeApi()
    with pytest.raises(ValueError, match=r"optimizer\.pt"):
        push_release(release, "me/tiny", api=api)
    assert not api.created
    assert not api.uploads


def test_snippets_name_the_repository(release, waits):
    push_release(release, "me/tiny-on-the-hub", api=FakeApi())
    card = (release / "README.md").read_text()
    assert 'AutoModel.from_pretrained("me/tiny-on-the-hub")' in card
    assert card == render_card(json.loads((release / "results.json").read_text()))


def test_an_edited_card_stays_as_it_is(release, waits):
    card = release / "README.md"
    card.write_text(card.read_text() + "\nMy own words.\n")
    push_release(release, "me/tiny", api=FakeApi())
    assert card.read_text().endswith("My own words.\n")
    assert "me/tiny" not in card.read_text()


def test_at_least_one_attempt(release):
    with pytest.raises(ValueError, match="attempts"):
        push_release(release, "me/tiny", api=FakeApi(), attempts=0)
