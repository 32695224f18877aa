"""Copies `configs/` into the wheel as `upsnet/configs/`, which `pyproject.toml` cannot express."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

CONFIGS = Path("configs")


class BuildWithConfigs(build_py):
    """Copies the configs into the package that is built. An editable install reads or links them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for target, source in self._configs().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target, preserve_mode=False)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self._configs()]

    def get_output_mapping(self) -> dict[str, str]:
        return super().get_output_mapping() | self._configs()

    def _configs(self) -> dict[str, str]:
        return {str(Path(self.build_lib, "upsnet", path)): str(path) for path in sorted(CONFIGS.glob("*.yaml"))}


setup(cmdclass={"build_py": BuildWithConfigs})
