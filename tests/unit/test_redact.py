"""Secrets by shape and by name; what only looks like one stays."""

import pytest

from beni.errors import CompositionError, DataError
from beni.redact import is_secret, redacted, redacted_override


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:pw@host/x", "http://me:***@host/x"),
        ("https://host/f?token=abc&x=1", "https://host/f?token=***&x=1"),
        ("https://b.s3/x?X-Amz-Signature=abcd", "https://b.s3/x?X-Amz-Signature=***"),
        ("found hf_" + 20 * "a", "found ***"),
        ("data.api_key=abc", "data.api_key=***"),
        ("password='a b'", "password=***"),
        ("Authorization: Bearer abcdefghij", "Authorization: Bearer ***"),
    ],
)
def test_a_secret_is_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        *("schedule.tokens=512", "eos_token=</s>", "num_tokens=4", "optim.lr=1", "https://host:8080/x?page=3"),
        *("data.token=${oc.env:TOKEN}", "images.private_addresses=true", "template.name=secretary"),
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_variables_of_a_job_are_hidden_whatever_their_name(plus: str) -> None:
    assert redacted_override(f"{plus}hydra.job.env_set.COLOUR=red") == f"{plus}hydra.job.env_set.COLOUR=***"
    assert redacted_override("train.steps=3") == "train.steps=3"


def test_no_error_shows_a_secret() -> None:
    assert "pw" not in str(DataError("https://me:pw@host/x does not answer"))
    assert "pw" not in str(CompositionError("E-X", "https://me:pw@host/x", fix="set data.path=https://me:pw@host"))


def test_a_value_is_a_secret_by_its_key_or_by_its_shape() -> None:
    assert is_secret("api_key", "abc")
    assert is_secret("path", "https://me:pw@host/x")
    assert not is_secret("path", "https://host/x")
    assert not is_secret("api_key", "")


@pytest.mark.parametrize(
    "line",
    [
        *("export WANDB_API_KEY=0123456789abcdef", "export HF_TOKEN='abc def'", 'X=1 DB_PASSWORD="abc" python'),
        *("--export=ALL,WANDB_API_KEY=0123", "export MLFLOW_PASSWORD='$literal'", "export AWS_SECRET_ACCESS_KEY=/a+b"),
    ],
)
def test_a_line_that_gives_a_name_a_secret_is_one(line: str) -> None:
    assert is_secret("0", line)


@pytest.mark.parametrize(
    "line",
    [
        *(
            "export WANDB_API_KEY=$KEY",
            'export WANDB_API_KEY="$(cat ~/.wandb)"',
            "export API_KEY=`pass beni`",
            "TOKEN=''",
        ),
        *("export GOOGLE_APPLICATION_CREDENTIALS=/home/me/key.json", "export SSH_PRIVATE_KEY=~/.ssh/id"),
        *(". ~/.secrets", "module load cuda", "export TOKENIZERS_PARALLELISM=false", "export WANDB_API_KEY_FILE=/k"),
    ],
)
def test_a_line_that_reads_a_secret_elsewhere_is_none(line: str) -> None:
    assert not is_secret("0", line)
