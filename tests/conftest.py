"""Shapes and types of every public function are checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("head2toe", "beartype.beartype")
