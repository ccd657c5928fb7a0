"""What ``_config.yml`` says, where the repository's address stands once."""

from pathlib import Path


def repository(root="."):
    """-> (address of the repository, branch)"""
    import yaml

    settings = yaml.safe_load(Path(root, "_config.yml").read_text())["repository"]
    return settings["url"], settings["branch"]
