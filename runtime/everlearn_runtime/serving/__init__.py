"""A page to teach from, and the API under it: ``everlearn-device serve``; the extra is ``serve``."""
