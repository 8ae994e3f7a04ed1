from gyges.metrics.timeline import device_kv_use, device_segments, fleet_series

from .factory import sample


def merged_and_split():
    return [
        sample(0, "a", (0,), running=2, waiting=1, used=10),
        sample(0, "b", (1,), running=3, waiting=0, used=20),
        sample(1, "a", (0,), running=1, waiting=1, used=15),  # b was not sampled: it holds
        sample(2, "ab", (0, 1), running=5, waiting=0, used=60, total=200),
        sample(3, "a2", (0,), running=1, waiting=0, used=5),
        sample(3, "b2", (1,), running=1, waiting=7, used=5),
    ]


def test_totals_hold_between_samples_and_follow_merges_and_splits():
    series = fleet_series(merged_and_split()[::-1])
    assert series.t_s == [0, 1, 2, 3]
    assert series.running == [5, 4, 5, 2]
    assert series.waiting == [1, 1, 0, 7]
    assert series.kv_used_blocks == [30, 35, 60, 10]
    assert series.kv_total_blocks == [200, 200, 200, 200]


def test_segments_cover_each_device_once_from_first_sample_to_end():
    segments = [(s.devices, s.tp, s.start_s, s.end_s) for s in device_segments(merged_and_split(), end_s=5)]
    assert segments == [
        ((0,), 1, 0, 2),
        ((1,), 1, 0, 2),
        ((0, 1), 2, 2, 3),
        ((0,), 1, 3, 5),
        ((1,), 1, 3, 5),
    ]


def test_devices_that_no_instance_has_are_shown_as_such_and_count_nothing():
    seen = [
        sample(0, "i0", (0, 1), running=2, used=60, total=200),
        sample(1, "i1", (0,), running=1, used=10),
        sample(1, "none", (1,), tp=0, running=0, total=0),
        sample(2, "i1", (0,), running=1, used=10),
        sample(2, "none", (1,), tp=0, running=0, total=0),
    ]
    assert [(s.devices, s.tp, s.start_s, s.end_s) for s in device_segments(seen, end_s=3)] == [
        ((0, 1), 2, 0, 1),
        ((0,), 1, 1, 3),
        ((1,), 0, 1, 3),
    ]
    series = fleet_series(seen)
    assert (series.running, series.kv_total_blocks) == ([2, 1, 1], [200, 100, 100])
    assert device_kv_use(seen)[1] == {"mean": 0.15, "max": 0.3}


def test_an_instance_that_keeps_its_name_but_changes_degree_is_two_segments():
    seen = device_segments([sample(0, "i", (0, 1)), sample(2, "i", (0,)), sample(2, "j", (1,))], end_s=3)
    assert [(s.instance, s.devices, s.start_s, s.end_s) for s in seen] == [
        ("i", (0, 1), 0, 2),
        ("i", (0,), 2, 3),
        ("j", (1,), 2, 3),
    ]
