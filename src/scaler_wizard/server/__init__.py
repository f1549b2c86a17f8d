"""The cockpit's server: run folders over HTTP, on this machine only; a view of the journal that can drop decisions."""

from scaler_wizard.server.app import make_app
from scaler_wizard.server.serve import Address, serve

__all__ = ["Address", "make_app", "serve"]
