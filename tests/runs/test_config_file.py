"""config.gin written from a configuration is read back as that configuration."""

import gin
import optax
import pytest

from pemt_jax.cli.command import arguments_of
from pemt_jax.common.errors import PemtError
from pemt_jax.config import PemtConfig, T5Config
from pemt_jax.optimizers import Optimizer, Schedule
from pemt_jax.run_config import TrainConfig
from pemt_jax.runs.config_file import FIRST_LINE, to_gin, write_config
from pemt_jax.train import train

GIVEN = dict(
    model_dir="runs/x",
    mixture_or_task_name=("a", "b"),
    task_feature_lengths={"inputs": 8, "targets": 2},
    batch_size=4,
    train_steps=(10, 12),
    prompt_text='It\'s "quoted"\nand long',
    buckets=(8,),
    t5=T5Config(emb_dim=16),
    initial_checkpoint_path=None,
    options=PemtConfig(expert_rank=4),
)


def read(path):
    try:
        return TrainConfig.of(**arguments_of(train, [f"--gin_file={path}"]))
    finally:
        gin.clear_config()


@pytest.mark.parametrize("schedule", [0.01, Schedule("wsd", 0.02, 3, (10, 12), 2)])
def test_the_file_is_the_configuration(tmp_path, schedule):
    optimizer = Optimizer("adamw_rms", schedule, weight_decay=0.1, clip_norm=None)
    config = TrainConfig.of(**GIVEN, optimizer=optimizer)
    config = config.replace(model_dir=str(tmp_path))
    assert read(write_config(config)) == config


def test_an_optimizer_of_ones_own_is_left_out(tmp_path):
    config = TrainConfig.of(**GIVEN | {"model_dir": str(tmp_path)}, optimizer=optax.sgd(0.1))
    assert "make_optimizer" not in to_gin(config)
    assert read(write_config(config)) == config.replace(optimizer=Optimizer())


def test_a_text_that_is_given_is_written_instead(tmp_path):
    config = TrainConfig.of(**GIVEN | {"model_dir": str(tmp_path)})
    assert write_config(config, lambda: "# mine\n").read_text() == f"{FIRST_LINE}\n# mine\n"


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "config.gin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PemtError, match="is a link or a folder"):
        write_config(TrainConfig.of(**GIVEN | {"model_dir": str(tmp_path)}))
    assert not (tmp_path / "elsewhere").exists()
