"""The config of a run: its schema, and the functions that find and read config files."""

from upsnet.config.backbone import BackboneConfig, TimmBackboneConfig
from upsnet.config.load import find_config, list_configs, load_config, parse_config
from upsnet.config.panoptic_deeplab import PanopticDeepLabConfig
from upsnet.config.run import (
    AugmentConfig,
    CategoryConfig,
    CityscapesConfig,
    CocoConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    ShapesConfig,
    Source,
    TrainConfig,
)
from upsnet.config.upsnet import InstanceConfig, LossConfig, PanopticConfig, RPNConfig, SemanticConfig, UPSNetConfig

__all__ = [
    "AugmentConfig",
    "BackboneConfig",
    "CategoryConfig",
    "CityscapesConfig",
    "CocoConfig",
    "Config",
    "DataConfig",
    "EvaluateConfig",
    "InstanceConfig",
    "LossConfig",
    "ModelConfig",
    "PanopticConfig",
    "PanopticDeepLabConfig",
    "RPNConfig",
    "SemanticConfig",
    "ShapesConfig",
    "Source",
    "TimmBackboneConfig",
    "TrainConfig",
    "UPSNetConfig",
    "find_config",
    "list_configs",
    "load_config",
    "parse_config",
]
