"""The table of adapter configurations in pemt_jax/interop/peft/README.md says what happens."""

from pathlib import Path

import peft_table

README = Path(__file__).parents[2] / "pemt_jax" / "interop" / "peft" / "README.md"


def test_the_readme_has_the_table():
    assert f"\n\n{peft_table.table()}\n" in README.read_text(encoding="utf-8")


def test_public_adapters_are_taken_and_refusals_are_one_sentence():
    results = [peft_table.result(row) for row in peft_table.rows()]
    accepted = [result for result in results if result.startswith("accepted")]
    refused = [result for result in results if result not in accepted]
    assert len(accepted) >= 16 and len(refused) >= 14
    for sentence in refused:
        assert sentence.endswith(".") and "expected" in sentence and "\n" not in sentence
