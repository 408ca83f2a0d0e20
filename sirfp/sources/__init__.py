"""Where a dense network comes from: timm, a config, Detectron2's model zoo, a lazy config."""
