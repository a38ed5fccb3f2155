"""The application, for its management command."""

from django.apps import AppConfig


class BackfilldConfig(AppConfig):
    """Has no models."""

    name = "backfilld_django"
    verbose_name = "backfilld"
