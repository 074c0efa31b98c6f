"""Make tests/data/hf_t5_1_0 and hf_t5_1_1: random Hugging Face T5s and the logits they give.

Run once, in an environment of its own: pip install torch==2.13.0 transformers==5.23.0 numpy.
The tests need none of these.  Shapes are chosen to be awkward: heads * head width differs from the
model width, the stacks differ in depth, and inputs are longer than the largest distance that has a
bucket of its own (128), with padding.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
B, S, T = 3, 150, 140


def make(name: str, **kind) -> None:
    torch.manual_seed(len(name))
    config = transformers.T5Config(
        vocab_size=48,
        d_model=24,
        d_kv=5,
        num_heads=3,
        d_ff=40,
        num_layers=3,
        num_decoder_layers=2,
        dropout_rate=0.1,
        decoder_start_token_id=0,
        **kind,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    if kind["feed_forward_proj"] != "relu":
        # transformers 5 ties every T5 when it builds one; in version 1.1 the two are different.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    with torch.no_grad():
        for key, weight in model.named_parameters():
            std = (
                1.0
                if key == "shared.weight" or "relative_attention" in key
                else weight.shape[-1] ** -0.5
            )
            weight.normal_(std=std)
            if "layer_norm" in key:
                weight.mul_(0.2 * weight.shape[-1] ** 0.5).add_(1.0)
    if kind["feed_forward_proj"] != "relu":
        assert not torch.equal(model.lm_head.weight, model.shared.weight)

    rng = np.random.default_rng(0)
    inputs = rng.integers(2, 48, (B, S))
    targets = rng.integers(2, 48, (B, T))
    for row, (s, t) in enumerate([(S, T), (17, 3), (90, 60)]):
        inputs[row, s - 1], inputs[row, s:] = 1, 0
        targets[row, t - 1], targets[row, t:] = 1, 0
    decoder_inputs = np.concatenate([np.zeros((B, 1), int), targets[:, :-1]], axis=1)
    with torch.no_grad():
        mask = torch.tensor(inputs > 0).long()
        logits = model(
            input_ids=torch.tensor(inputs),
            attention_mask=mask,
            decoder_input_ids=torch.tensor(decoder_inputs),
        ).logits.numpy()
        if kind["feed_forward_proj"] != "relu":
            # The stored logits are those of the untied projection.
            encoded = model.encoder(torch.tensor(inputs), mask)[0]
            hidden = model.decoder(
                torch.tensor(decoder_inputs),
                encoder_hidden_states=encoded,
                encoder_attention_mask=mask,
            )[0].numpy()
            expected = hidden @ model.lm_head.weight.numpy().T
            assert np.abs(expected - logits).max() < 1e-5
            assert np.abs(hidden @ model.shared.weight.numpy().T - logits).max() > 1

    folder = HERE / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    print(name, json.loads((folder / "config.json").read_text()), np.abs(logits).max())
    np.savez_compressed(folder / "expected.npz", inputs=inputs, targets=targets, logits=logits)


make("hf_t5_1_0", feed_forward_proj="relu", tie_word_embeddings=True)
make("hf_t5_1_1", feed_forward_proj="gated-gelu", tie_word_embeddings=False)
distances = torch.arange(-400, 401)[None]
bucket = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
np.savez_compressed(
    HERE / "hf_buckets.npz",
    distances=distances[0].numpy(),
    **{
        f"{way}_{buckets}_{distance}": bucket(distances, way == "both", buckets, distance)[
            0
        ].numpy()
        for way in ("both", "past")
        for buckets, distance in ((32, 128), (20, 50))
    },
)
