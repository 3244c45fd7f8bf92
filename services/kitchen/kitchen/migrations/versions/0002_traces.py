"""Each ticket's trace, and since when a portion is where it is."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("tickets", sa.Column("traceparent", sa.String(55), nullable=False, server_default=""))
    op.add_column("portions", sa.Column("since", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("portions", "since")
    op.drop_column("tickets", "traceparent")
