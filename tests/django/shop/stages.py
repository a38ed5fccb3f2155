"""What the migrations below and the test of the journey have in common."""

JOB = "customers-email-normalized"

# The daemon enforces NOT NULL without a long lock; the migration that follows finds nothing left to enforce.
FINISH = {"not_null": ["email_normalized"]}
