-- Recurring events. A schedule has one pending occurrence at a time. The script that claims it
-- creates the next one from its nominal time, so a crash cannot break the chain.
-- A script cannot evaluate a cron expression. Nodes store the next few nominal times in `ahead`,
-- and the reply to a claim names the schedules that run short of them. An occurrence is not
-- claimed while the time of the next one is unknown.
--
-- An occurrence is an event with the id '<schedule>@<nominal µs>'.
--
-- The state of a schedule is these fields, joined by ';':
--   print     fingerprint of the definition
--   every     interval in µs; '' if the schedule has a list of nominal times
--   misfire   c coalesce, s skip, a all
--   overlap   q queue one, a allow, s skip
--   jitter    in µs
--   stop      the last moment at which a nominal time may be; '' for none
--   left      how many occurrences are left; '' for no limit
--   paused    1 or ''
--   next      nominal time of the pending occurrence; '' if there is none
--   last      nominal time of the last claimed occurrence. If it also stood for missed ones, the
--             latest of their nominal times. '' before the first claim
--   running   nominal time of the last claimed occurrence; '' once it has ended
--   ahead     nominal times that follow, joined by ','
--   final     1 if no other times will follow these, else ''
--   gap       how many past times were left out of the list `ahead`; '' for none
--   anchor    one nominal time of the interval, from which the others are computed
--   waits     the time to which this script, not a user, has last moved the pending occurrence; '' if
--             it has not
--   grace     how late an occurrence may start, in µs; '' for no limit
--   expires   how long after its due time an occurrence expires, in µs; '' for never
--   owner     of the block that declares it (parts/owners.lua); '' for none
--
-- Few events are occurrences. So a script creates these functions only when it needs the first of
-- them: creating them takes as long as ten Redis commands.
local made
local function schedules()
  if made then return made end
  --- @section parts/schedule/state
  --- @section parts/schedule/next
  --- @section parts/schedule/control
  --- @section parts/schedule/due
  made = {
    read_state = read_state,
    write_state = write_state,
    occurrence_id = occurrence_id,
    parse_occurrence_id = parse_occurrence_id,
    next_after = next_after,
    has_more = has_more,
    store_pending = store_pending,
    renew_payload = renew_payload,
    jitter_of = jitter_of,
    try_writes = try_writes,
    forget = forget,
    advance = advance,
    let_start = let_start,
    decide = decide,
    ended = ended,
    runs_short = runs_short,
  }
  return made
end
