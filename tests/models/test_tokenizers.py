"""Tokenizers of folders."""

import json

import pytest
from toy_tokenizers import byte_fallback, byte_level

import stepsal
from stepsal.traces.prompt import encode_prompt


@pytest.mark.parametrize(("make", "by_default"), [(byte_fallback, True), (byte_level, False)])
@pytest.mark.parametrize("wanted", [True, False, None])
def test_the_folder_says_whether_a_text_begins_with_a_bos(make, by_default, wanted, tmp_path):
    make().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("add_bos_token", None)
    path.write_text(json.dumps(config if wanted is None else config | {"add_bos_token": wanted}))
    tokenizer = stepsal.load_tokenizer(tmp_path)
    begins = encode_prompt(tokenizer, "the answer")[0] == tokenizer.bos_token_id
    assert begins is (by_default if wanted is None else wanted)
    text = tokenizer.bos_token + "the answer"
    assert encode_prompt(tokenizer, text).count(tokenizer.bos_token_id) == 1
