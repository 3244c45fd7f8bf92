"""Who waits for a station is found in order, however many wait."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

WAITING = sa.text("done_at IS NULL")


def upgrade() -> None:
    op.create_index(
        "portions_waiting", "portions", ["station", "portion_id"], sqlite_where=WAITING, postgresql_where=WAITING
    )
    op.drop_index("portions_queue", "portions")


def downgrade() -> None:
    op.create_index("portions_queue", "portions", ["station", "done_at", "portion_id"])
    op.drop_index("portions_waiting", "portions")
