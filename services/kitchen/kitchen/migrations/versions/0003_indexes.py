"""What is at a station, and who waits for one, is found by an index, however many portions there are."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

AT_WORK = sa.text("done_at IS NOT NULL")
WAITING = sa.text("done_at IS NULL")


def upgrade() -> None:
    op.create_index("portions_done", "portions", ["done_at"], sqlite_where=AT_WORK, postgresql_where=AT_WORK)
    op.create_index(
        "portions_waiting", "portions", ["station", "portion_id"], sqlite_where=WAITING, postgresql_where=WAITING
    )
    op.drop_index("ix_portions_done_at", "portions")
    op.drop_index("portions_queue", "portions")


def downgrade() -> None:
    op.create_index("portions_queue", "portions", ["station", "done_at", "portion_id"])
    op.create_index("ix_portions_done_at", "portions", ["done_at"])
    op.drop_index("portions_waiting", "portions")
    op.drop_index("portions_done", "portions")
