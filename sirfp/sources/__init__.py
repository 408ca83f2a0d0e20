"""Sources of dense networks: timm, config files, lazy configs, Detectron2's model zoo."""
