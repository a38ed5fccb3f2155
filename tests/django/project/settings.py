"""A project with one application, on the database that the tests name."""

import os

SECRET_KEY = "of no use"
INSTALLED_APPS = ["shop", "backfilld_django"]
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"


def database(name: str) -> dict[str, str]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "PORT": os.environ["SHOP_PORT"],
        "USER": os.environ.get("SHOP_USER", "postgres"),
        "NAME": name,
    }


DATABASES = {
    "default": database(os.environ["SHOP_DATABASE"]),
    "other": database(os.environ.get("SHOP_OTHER_DATABASE", "postgres")),
    "sqlite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
}
if "SHOP_WITHOUT_BACKFILLD" in os.environ:
    BACKFILLD_ENABLED = False
