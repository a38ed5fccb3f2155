"""The models as the last version of the code has them."""

from django.db import models


class Customer(models.Model):
    email_normalized = models.TextField()
    visits = models.IntegerField(default=0)
