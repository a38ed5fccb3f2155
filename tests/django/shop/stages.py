"""What the migrations below and the test of the journey have in common."""

JOB = "customers-email-normalized"

# Turn this on to let the daemon enforce NOT NULL without a long lock: {"not_null": ["email_normalized"]}. The
# migration that follows then finds nothing left to enforce.
FINISH = None
