"""Since when an order's step has come to a fault each time."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("orders", sa.Column("fails_since", sa.BigInteger))


def downgrade() -> None:
    op.drop_column("orders", "fails_since")
