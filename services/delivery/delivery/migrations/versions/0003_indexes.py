"""Who is on the road is found by an index that holds nobody else."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

ON_THE_ROAD = sa.text("arrives_at IS NOT NULL")


def upgrade() -> None:
    op.create_index(
        "deliveries_arriving", "deliveries", ["arrives_at"], sqlite_where=ON_THE_ROAD, postgresql_where=ON_THE_ROAD
    )
    op.drop_index("ix_deliveries_arrives_at", "deliveries")


def downgrade() -> None:
    op.create_index("ix_deliveries_arrives_at", "deliveries", ["arrives_at"])
    op.drop_index("deliveries_arriving", "deliveries")
