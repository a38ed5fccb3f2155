"""Backfilld's jobs in Django migrations: submitted by one, required by a later one."""

from .operations import BackfillError, RequireBackfill, SubmitBackfill

__all__ = ["BackfillError", "RequireBackfill", "SubmitBackfill"]
