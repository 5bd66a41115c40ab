-- Apply the grace and the misfire and overlap policies to an occurrence that is due.
--
-- Commands  hset zscore
-- Format    with_missed
-- Reads     advance due_of expiry_of has_more is_due is_too_late next_after occurrence_id
-- Reads     parse_occurrence_id postpone read_state store_pending write_state
-- Sets      decide

-- How many missed occurrences misfire `a` delivers at most after a pause.
local MOST_BEHIND = 1000
-- An occurrence that waits is checked again after this time, in µs.
local REMIND = 1000000

-- Skip the pending occurrence, which would start too late, and the following ones for which it is
-- too late as well. The first that may still start becomes the pending occurrence.
local function skip_late(schedule, state, id)
  local nominal = tonumber(state.next)
  local latest, skipped = nominal, 1 + (tonumber(state.gap) or 0)
  local after = next_after(state, latest)
  local every = tonumber(state.every)
  if every and after then
    -- Pass at once over those that are too late with the longest jitter as well.
    local bound = NOW - tonumber(state.grace) - tonumber(state.jitter)
    local over = math.floor((math.min(bound, tonumber(state.stop) or bound) - after) / every)
    if over > 0 then
      skipped = skipped + over
      latest = after + (over - 1) * every
      after = next_after(state, latest)
    end
  end
  while after and is_too_late(state, due_of(schedule, state, after)) do
    skipped = skipped + 1
    latest = after
    after = next_after(state, latest)
  end
  if not after and has_more(state) then
    -- As in `decide`: wait until a node adds more times.
    if latest > nominal then state.ahead, state.gap = digits(latest), digits(skipped - 2) end
    postpone(schedule, state, id, NOW + REMIND)
    return
  end
  remove(id)
  count('skipped', skipped)
  state.next = after and state.left ~= '0' and digits(after) or ''
  state.gap, state.waits = '', ''
  store_pending(schedule, state)
  write_state(schedule, state)
end

-- Decide about an occurrence that is due. If it may start now, return true and its body, which has
-- the number of missed occurrences that it also stands for, and expires when the latest of them
-- does. If it was moved or dropped, return false. `score` is its due time, as a number.
local function decide(id, body, score)
  local schedule, nominal = parse_occurrence_id(id)
  local state = schedule and read_state(schedule)
  if not state or state.next ~= nominal then return true, body end

  local running_until = state.running ~= '' and
    redis.call('ZSCORE', DUE, occurrence_id(schedule, state.running))
  if running_until and state.overlap == 'q' then
    -- Wait for the running occurrence to end. If its node dies, wait for its lease to end.
    postpone(schedule, state, id, math.max(tonumber(running_until), NOW) + REMIND)
    return false
  end

  -- A user may have rescheduled the occurrence: it is then due at that time, unless it is earlier.
  local due = due_of(schedule, state, nominal)
  if score ~= tonumber(state.waits) then due = math.max(due, score) end
  if not running_until and is_too_late(state, due) then
    skip_late(schedule, state, id)
    return false
  end

  local latest, missed = tonumber(nominal), tonumber(state.gap) or 0
  local after = next_after(state, latest)
  -- `behind` is true if this occurrence stands for all missed ones, or is dropped with them. If
  -- it is false (misfire `a`), the missed occurrences are delivered one by one.
  local behind = running_until and state.overlap == 's' or state.misfire ~= 'a'
  if state.every == '' then
    while behind and after and is_due(schedule, state, after) do
      missed = missed + 1
      latest = after
      after = next_after(state, latest)
    end
    if not after and has_more(state) then
      -- The next nominal time is unknown. Wait until a node adds more. Replace the past times in
      -- the list by the last of them, so that the list stays short. The node adds the times after
      -- it. `gap` counts the others, and not the last, which is counted again from the list.
      if latest > tonumber(nominal) then
        state.ahead, state.gap = digits(latest), digits(missed - 1)
      end
      postpone(schedule, state, id, NOW + REMIND)
      return false
    end
  elseif after and is_due(schedule, state, after) then
    local every = tonumber(state.every)
    -- How many occurrences after this one are due. With misfire `a`, pass over only those that
    -- exceed MOST_BEHIND.
    local over = math.floor((math.min(NOW, tonumber(state.stop) or NOW) - after) / every) + 1
    while not is_due(schedule, state, after + (over - 1) * every) do over = over - 1 end
    if not behind then over = over - (MOST_BEHIND - 1) end
    if over > 0 then
      missed = over
      latest = after + (over - 1) * every
      after = next_after(state, latest)
    end
  end
  state.gap = ''

  if running_until and state.overlap == 's' then
    remove(id)
    count('skipped', missed + 1)
    advance(schedule, state, after)
    return false
  end
  if state.misfire == 's' and missed > 0 then
    -- Drop each occurrence whose successor is due as well. The latest one is only
    -- late, and becomes the pending occurrence.
    remove(id)
    count('skipped', missed)
    if state.every == '' and after then
      state.ahead = digits(after) .. (state.ahead ~= '' and ',' .. state.ahead or '')
    end
    state.next, state.waits = digits(latest), ''
    store_pending(schedule, state)
    write_state(schedule, state)
    return false
  end
  count('coalesced', missed)
  state.last, state.running = digits(latest), nominal
  advance(schedule, state, after)
  if missed > 0 then
    body = with_missed(body, expiry_of(state, due_of(schedule, state, latest)), missed)
    redis.call('HSET', BODY, id, body)
  end
  return true, body
end
